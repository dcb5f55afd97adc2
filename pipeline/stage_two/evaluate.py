"""Runs on labelled images that they were not made from: every figure that a run tells, and which run is better."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import Backbone, as_asked, description
from ..core.errors import CacheError, DataError, PipelineError, UnknownNameError
from ..core.progress import Progress, shown, silent
from ..data import Dataset, Limits, on_disk
from ..data.files import DEFAULT_LIMITS
from ..data.splits import SplitRule
from ..engines import Running
from ..evaluation import evaluate
from ..evaluation.comparison import compared
from ..runs.classifier import ImageClassifier
from ..runs.run import Run, prediction_rows, save_evaluation
from ..stage_one.caches import load_named
from ..stage_one.extraction import extract_features
from ..store import FeatureCache, cache_path, open_caches
from ..store.layout import as_keys, find
from .fit import HELD_OUT, probabilities_of

ALL = "all"


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on labelled images.

    Attributes
    ----------
    run : str
    dataset, split : str
        ``all``: images of every split.
    scores : dict
        As `pipeline.evaluate` returns them, of the run's classes.
    classes : tuple of str
        The run's.
    unknown : dict of str to int
        Images of classes that the run does not know; they are left out of all figures.
    absent : tuple of str
        Classes of the run of which there is no image.
    failures : dict of str to str
        Images that cannot be read, and why.
    predictions : list of (filename, split, label, prediction, prob)
    path : Path
        The table of them; the figures lie beside it.
    versus : dict
        See `pipeline.evaluation.comparison.compared`; empty for one run, None for the best.
    """

    run: str
    dataset: str
    split: str
    scores: dict[str, Any]
    classes: tuple[str, ...]
    unknown: dict[str, int]
    absent: tuple[str, ...]
    failures: dict[str, str]
    predictions: list[tuple[str, str, str, str, float]]
    path: Path
    versus: dict[str, Any] | None = field(default_factory=dict)


def evaluate_runs(
    runs: Sequence[str | Path | Run],
    data: Any,
    *,
    split: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: Progress | bool = silent,
) -> list[Evaluation]:
    """Score runs on labelled images, each by features that are cached and used again.

    Parameters
    ----------
    runs : sequence of str, path or Run
    data : str
        As `pipeline.extract` takes it.
    split : str, optional
        Which images: a split of the data, or ``all``. By default those of its own test, else of its val, else all.
    limits, cache_dir, dataset_name, batch_size, workers, device, engine
        See `pipeline.extract`.

    Returns
    -------
    list of Evaluation
        In the order of `runs`. Each is kept in its run's folder, below ``evaluations``.

    Raises
    ------
    DataError
        If there is no labelled image of a class that a run knows.
    PipelineError
        For whatever else the user can mend.
    """
    data = on_disk(data, cache_dir)
    progress = shown(progress)
    cache_dir, runs_dir = Path(cache_dir), Path(runs_dir)
    opened = [run if isinstance(run, Run) else Run.open(run, runs_dir) for run in runs]
    dataset = load_named(data, dataset_name, cache_dir=cache_dir, val_fraction=0.0, limits=limits, progress=progress)
    split, chosen = _chosen(dataset, split)
    running = Running(device, engine, batch_size, workers)
    found = [_evaluated(run, dataset, data, split, chosen, running, cache_dir, progress) for run in opened]
    return _compared(found, opened) if len(found) > 1 else found


def _chosen(dataset: Dataset, split: str | None) -> tuple[str, np.ndarray]:
    """Return which images are scored: the name of their split, and their positions."""
    labelled = dataset.labels >= 0
    there = [name for name in HELD_OUT if (labelled & (dataset.splits == name)).any()]
    split = split or (there or [ALL])[0]
    known = [*dict.fromkeys(dataset.splits.tolist()), ALL]
    if split not in known:
        raise UnknownNameError(f"split of {dataset.name}", split, known)
    chosen = np.flatnonzero(labelled & ((dataset.splits == split) | (split == ALL)))
    if not len(chosen):
        raise DataError(f"{dataset.name} has no labelled image{'' if split == ALL else f' in {split!r}'}.")
    return split, chosen


def _evaluated(
    run: Run, dataset: Dataset, data: str, split: str, chosen: np.ndarray, running: Running, cache_dir: Path,
    progress: Progress,
) -> Evaluation:  # fmt: skip
    classifier = ImageClassifier.load(run, cache_dir=cache_dir)
    own = np.array([classifier.classes.index(name) if name in classifier.classes else -1 for name in dataset.classes])
    labels = own[dataset.labels[chosen]]
    unknown = {name: int((dataset.labels[chosen] == label).sum()) for label, name in enumerate(dataset.classes)
               if own[label] < 0}  # fmt: skip
    paths = [_cached(dataset, part.plain, data, running, cache_dir, progress) for part in classifier.backbone.parts]
    with open_caches(paths) as cache:
        at, there = _rows_of(cache, dataset.digests[chosen])
        reasons = dict(cache.skipped)
        failures = {dataset.paths[index]: reasons.get(dataset.paths[index], "it gave no features")
                    for index in chosen[~there].tolist()}  # fmt: skip
        kept = there & (labels >= 0)
        if not kept.any():
            raise DataError(f"No image of {dataset.name} that can be read is of a class that {run.name} knows: "
                            f"{', '.join(classifier.classes[:8])}.")
        scored = probabilities_of(cache, classifier.head, at[kept], n_classes=len(classifier.classes))
    indices, labels = chosen[kept], labels[kept]
    table = list(prediction_rows([dataset.paths[index] for index in indices], dataset.splits[indices], labels, scored,
                                 classifier.classes))  # fmt: skip
    counts = np.bincount(labels, minlength=len(classifier.classes))
    absent = tuple(name for name, count in zip(classifier.classes, counts, strict=True) if not count)
    unknown = {name: count for name, count in unknown.items() if count}
    scores = evaluate(labels, scored)
    figures = {"data": data, "dataset": dataset.name, "root": str(dataset.root), "split": split,
               "classes": list(classifier.classes), "scores": scores, "unknown": unknown, "absent": list(absent),
               "failures": failures}
    path = save_evaluation(run, f"{dataset.name}-{split}", table, figures)
    return Evaluation(run.name, dataset.name, split, scores, classifier.classes, unknown, absent, failures, table, path)


def _cached(
    dataset: Dataset, backbone: Backbone, data: str, running: Running, cache_dir: Path, progress: Progress
) -> Path:
    """Return the cache with a data set's rows, computing those that it lacks; its splits are decided as they were."""
    path = cache_path(cache_dir, dataset.name, backbone.name, backbone.spec)
    try:
        with FeatureCache.open(path) as cache:
            missing, failed = np.flatnonzero(~_rows_of(cache, dataset.digests)[1]), dict(cache.skipped)
            if all(dataset.paths[index] in failed for index in missing.tolist()):
                return path
            splitting = SplitRule.of(cache.meta.get("origin", {})).to_dict()
    except CacheError:
        splitting = SplitRule().to_dict()
    listed = load_named(
        data, dataset.name, cache_dir=cache_dir, limits=dataset.limits, progress=progress, **splitting
    )
    origin = {"data": data, **splitting, "limits": asdict(dataset.limits)}
    found = _as_named(backbone)
    return extract_features(listed, found, running, cache_dir=cache_dir, origin=origin, progress=progress).path


def _as_named(backbone: Backbone) -> Backbone:
    """Return a run's backbone as `extract` would find it by its name, so that the cache is called the same."""
    with suppress(PipelineError):
        if (found := as_asked(description(backbone))).spec == backbone.spec:
            return found
    return backbone  # fine-tuned: its weights are the run's own


def _rows_of(cache: FeatureCache, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row of each image, by its content, and whether there is one."""
    keys = as_keys(cache.digests)
    order = np.argsort(keys, kind="stable")
    at, there = find(keys[order], as_keys(digests))
    return order[at] if len(order) else at, there


def _compared(found: list[Evaluation], runs: Sequence[Run]) -> list[Evaluation]:
    """Add to each what is known of it against the best on the same images."""
    metrics = [{"name": one.run, "dataset": one.dataset, "split": one.split, "seconds": run.metrics["seconds"],
                "accuracy": one.scores["accuracy"]} for one, run in zip(found, runs, strict=True)]  # fmt: skip
    rows = {one.run: [{"filename": name, "label": label, "prediction": prediction}
                      for name, _, label, prediction, _ in one.predictions] for one in found}  # fmt: skip
    best_first = sorted(metrics, key=lambda run: -run["accuracy"])
    versus = {run["name"]: run["versus_best"] for run in compared(best_first, rows)}
    return [replace(one, versus=versus[one.run]) for one in found]
