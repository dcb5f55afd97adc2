"""Stage two: train heads on cached features, score them on every split, and save both."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbones import DEFAULT, Backbone
from ..core.errors import CacheError, PipelineError, check_keywords
from ..core.progress import Progress, note, shown, silent
from ..data import DEFAULT_DATA, on_disk
from ..data.augmentation import Views
from ..data.remarks import label_remarks
from ..runs.classifier import metadata_of
from ..runs.run import SPLITS, Run, claimed, file_safe, prediction_rows, save_learning_curve, write_run
from ..runs.scores import score_splits, seconds_of
from ..stage_one.caches import CacheChoice, Features
from ..store import FeatureCache, open_caches
from .calibrate import Calibration, calibrated, held_out_figures
from .fit import FittedHead, Sweep, Training, fit_head, memory_limit, must_stream, probabilities_of

if TYPE_CHECKING:
    from ..heads import HeadEntry

WAIT = 5.0  # seconds for another process that is writing a run of that name
STORED_ROWS = {"rows_", "support_"}  # of heads that keep training images: not learned, only kept


def train_head(
    head: str | Any = "logistic",
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    tta: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    sweep: Sweep | bool | None = None,
    repeats: int = 1,
    calibration: Calibration | bool | None = None,
    max_memory: int | None = None,
    scheduler: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | bool = silent,
    **more: Any,
) -> Run:
    """Stage two: train a head on cached features, score it on every split, and save both.

    Parameters
    ----------
    head : str or estimator
        A name in `pipeline.heads.HEADS`; or any scikit-learn classifier, or pipeline that ends in one, see
        `pipeline.heads.estimator`: its settings go by its own names (``sweep=Sweep({"svc__C": [1, 10]})``).
    data, backbone, dataset_name
        Which cache: as they were given to `extract`.
    features : path-like or sequence of them, optional
        A cache file, instead of those; of several, the features of the same images side by side.
    views : int or Views, optional
        As they were given to `extract`. The head learns from all views of the training images: heads trained by epochs
        from one of each image an epoch, others from all at once. What chooses settings or epochs is the plain one.
    tta : bool
        Score by probabilities averaged over the views.
    settings : mapping, optional
        The head's own settings; see `pipeline.heads.make_head`. They can be given as they are, too: ``C=1``.
    seed : int
    sweep, repeats, max_memory, scheduler
        See `pipeline.stage_two.fit.Training`; True is a sweep as it comes. A killed sweep goes on where it stopped.
    calibration : Calibration or True, optional
        Make probabilities honest, and learn to say "I don't know"; see `pipeline.stage_two.calibrate`.
    name : str, optional
        Of the run; by default from data set, backbone and head. Where there is one of that name and other settings, a
        number is put behind it.
    overwrite : bool
        Replace that one instead.

    Returns
    -------
    Run

    Raises
    ------
    CacheError
        If there is no cache for this, or the images changed since.
    UnknownNameError
        If the head has no such setting.
    """
    data, head = on_disk(data, cache_dir), _registered(head)
    progress, calibration = shown(progress), Calibration() if calibration is True else calibration or None
    own = {**(settings or {}), **_known_settings(more, [head], train_head)}
    training = Training(own, seed, _sweep(sweep), repeats, tta, max_memory, scheduler)
    with CacheChoice(data, backbone, features, views, cache_dir, dataset_name).opened(progress) as cache:
        return _train(cache, head, training, calibration, Path(runs_dir), name, overwrite, progress)


def _registered(head: Any) -> str:
    if isinstance(head, str):
        return head
    from ..heads.estimator import registered  # imports scikit-learn

    return registered(head)


def _sweep(sweep: Sweep | bool | None) -> Sweep | None:
    return Sweep() if sweep is True else sweep or None


def _known_settings(given: Mapping[str, Any], heads: Sequence[str], function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return settings that were given as keywords, if one of the heads has each of them."""
    from ..heads import HEADS

    known = {setting for head in heads for setting in HEADS[head].settings}
    check_keywords(f"setting of {' or '.join(heads)}", given, sorted(known), function)
    return given


def _train(
    cache: FeatureCache, head: str, training: Training, calibration: Calibration | None, runs_dir: Path,
    name: str | None = None, overwrite: bool = False, progress: Progress = silent,
) -> Run:  # fmt: skip
    if calibration and must_stream(cache, training.max_memory):
        raise CacheError(f"{cache.path} does not fit into memory, and calibration takes all training rows at once. "
                         "Leave --calibrate out, or raise --max-memory.")
    if training.sweep:  # worker processes may stand in another folder
        training = replace(training, folder=runs_dir.absolute() / ".sweeps")
    fitted = fit_head(cache, head, training, progress)
    if calibration:
        fitted = calibrated(cache, fitted, calibration)
    from ..heads import HEADS

    asked = {"data": cache.meta["root"], "features": [part["spec_sha256"] for part in cache.parts] or cache.spec.sha256,
             "head": head, **HEADS[head].asked, **training.asked,
             "calibration": asdict(calibration) if calibration else None}
    told = ", ".join(filter(None, [training.told, "calibrated" if calibration else ""]))
    run = save_head_run(cache, fitted, runs_dir, name, asked, told, overwrite)
    for line in filter(None, [run.remark, *run.metrics.get("notes", ())]):
        note(line)
    return run


def train_heads(
    heads: Sequence[str | Any],
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    tta: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    sweep: Sweep | bool | None = None,
    repeats: int = 1,
    calibration: Calibration | bool | None = None,
    max_memory: int | None = None,
    scheduler: str | None = None,
    overwrite: bool = False,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | bool = silent,
    done: Callable[[Run], object] = lambda run: None,
    **more: Any,
) -> list[Run]:
    """Train several heads, one a core; see `train_head`. Each takes those of the settings that it has.

    Sweeps, and heads whose rows are streamed, go one after the other, each on all cores. `done` is told each run as it
    is saved.
    """
    from joblib import Parallel, delayed, effective_n_jobs

    from ..heads import HEADS

    data, heads = on_disk(data, cache_dir), [_registered(head) for head in heads]
    progress, calibration = shown(progress), Calibration() if calibration is True else calibration or None
    settings, sweep = {**(settings or {}), **_known_settings(more, heads, train_heads)}, _sweep(sweep)
    common, place = Training({}, seed, sweep, repeats, tta, memory_limit(max_memory), scheduler), Path(runs_dir)
    jobs = [(name, replace(common, settings=own)) for name, own in _settings_of(heads, settings)]
    with CacheChoice(data, backbone, features, views, cache_dir, dataset_name).opened(progress) as cache:
        each = common.max_memory // effective_n_jobs(-1)
        if sweep or must_stream(cache, each):
            one_by_one = []
            for name, training in jobs:
                one_by_one.append(_train(cache, name, training, calibration, place, overwrite=overwrite,
                                         progress=progress))
                done(one_by_one[-1])
            return one_by_one
        paths, place = [path.absolute() for path in cache.sources], place.absolute()
    with progress(total=len(jobs), desc="Training", unit="head") as bar:
        runs = []
        for run in Parallel(n_jobs=-1, return_as="generator_unordered")(
            delayed(_train_in_process)(paths, HEADS[name], replace(training, max_memory=each, jobs=1), calibration,
                                       place, overwrite)
            for name, training in jobs
        ):
            runs.append(run)
            done(run)
            bar.update(1)
    return sorted(runs, key=lambda run: heads.index(run.metrics["head"]))


def _settings_of(heads: Sequence[str], wanted: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each head with those of the settings that it has; each setting must be one of some head."""
    from ..heads import HEADS

    for key in wanted:
        if not any(key in HEADS[name].settings for name in heads):
            raise PipelineError(f"None of the heads has a setting {key!r}.")
    return [(name, {key: wanted[key] for key in wanted if key in HEADS[name].settings}) for name in heads]


def _train_in_process(
    paths: Sequence[Path], entry: HeadEntry, training: Training, calibration: Calibration | None, runs_dir: Path,
    overwrite: bool,
) -> Run:  # fmt: skip
    from threadpoolctl import threadpool_limits

    from ..heads import HEADS

    HEADS.setdefault(entry.name, entry)  # a program's own is not known in this process yet
    with threadpool_limits(1), open_caches(paths) as cache:
        return _train(cache, entry.name, training, calibration, runs_dir, overwrite=overwrite)


def learning_curve(
    heads: Sequence[str] = ("logistic",),
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | bool = silent,
    **options: Any,
) -> dict[str, Any]:
    """Return accuracy against the number of training images, and what twice as many would give.

    Each head's curve is kept below ``<runs_dir>/learning-curves``, where reports on these features find it.

    Parameters
    ----------
    heads : sequence of str
        Names in `pipeline.heads.HEADS`.
    data, backbone, features, views, dataset_name
        See `train_head`.
    **options
        Sizes or shots, repeats, settings, seed: see `pipeline.stage_two.learning_curve.learning_curve`.

    Returns
    -------
    dict
        `split`, `points`, `forecasts`, and `notes` for the user.
    """
    from .learning_curve import as_values, fewer_than_asked
    from .learning_curve import learning_curve as curve

    data = on_disk(data, cache_dir)
    progress = shown(progress)
    with CacheChoice(data, backbone, features, views, cache_dir, dataset_name).opened(progress) as cache:
        found = as_values(*curve(cache, heads, progress=progress, **options))
        given = [f"{key}={value}" for key, value in (options.get("settings") or {}).items()]
        told = ", ".join(given + [f"{key}={options[key]}" for key in ("repeats", "seed") if options.get(key)])
        for head in heads:
            own = {key: [one for one in found[key] if one["head"] == head] for key in ("points", "forecasts")}
            save_learning_curve(Path(runs_dir), cache.meta["dataset"], cache.spec.sha256,
                                {"head": head, "split": found["split"], "asked": options, "told": told, **own})
        fewer = fewer_than_asked(cache.labels[cache.indices("train")], options.get("sizes"), options.get("shots"))
        return {**found, "notes": [*cache.notes, *fewer]}


def save_head_run(
    cache: FeatureCache, fitted: FittedHead, runs_dir: Path, name: str | None, asked: Mapping[str, Any], told: str,
    overwrite: bool,
) -> Run:  # fmt: skip
    """Score a head on every split of its cache, and write the run folder; see `place_for` for which."""
    rows = np.flatnonzero((cache.labels >= 0) & np.isin(cache.splits, SPLITS))
    scores = probabilities_of(cache, fitted.head, rows, None if fitted.tta else 0)
    labels, splits, paths = cache.labels[rows], cache.splits[rows], cache.paths
    metrics = {**_metrics_of(cache, fitted, splits, labels, scores), "asked": asked, "told": told}
    origin = {"name": cache.meta["dataset"], "root": cache.meta["root"], **cache.meta.get("origin", {})}
    usual = f"{cache.meta['dataset']}-{cache.meta['label']}-{fitted.name}{'-tta' if fitted.tta else ''}"
    with claimed(runs_dir / file_safe(name or usual), asked, overwrite, WAIT) as place:
        return write_run(
            place.path,
            metrics={"name": place.path.name, **metrics},
            config={
                "dataset": origin,
                "backbone": cache.meta["description"],
                "head": {"name": fitted.name, "tta": fitted.tta, "settings": fitted.settings},
                "calibration": _asked(fitted.calibration) if fitted.calibration else None,
            },
            predictions=prediction_rows([paths[row] for row in rows], splits, labels, scores, cache.classes),
            save_weights=partial(_save_weights, fitted, metadata_of(cache.classes, cache.spec)),
            remark=place.remark,
        )


def _metrics_of(
    cache: FeatureCache, fitted: FittedHead, splits: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """Return what `metrics.json` says of a head, but its name."""
    learned = {key: value for key, value in vars(fitted.head).items() if key not in STORED_ROWS}
    said = {"views": fitted.views, "joined": list(cache.parts),
            "notes": [*cache.notes, *label_remarks(cache), *fitted.notes],
            "choice": fitted.choice, "layers": fitted.layers, "repeats": fitted.repeats}  # fmt: skip
    if fitted.calibration:
        said["calibration"] = held_out_figures(cache, fitted, splits, labels, scores)
    return {
        "kind": "head",
        "dataset": cache.meta["dataset"],
        "backbone": cache.meta["backbone"],
        "features": cache.meta["label"],
        "head": fitted.name,
        "classes": list(cache.classes),
        "splits": score_splits(splits, labels, scores),
        "seconds": seconds_of(float(cache.meta.get("seconds") or 0), fitted.seconds),
        "trainable_parameters": getattr(fitted.head, "parameters", 0) + sum(
            value.size for value in learned.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        ),
        "selection": fitted.selection,
        "spec_sha256": cache.spec.sha256,
        "streamed": fitted.streamed,
        "tta": fitted.tta,
        **{key: value for key, value in said.items() if value},
    }


def _save_weights(fitted: FittedHead, metadata: dict[str, Any], folder: Path) -> None:
    from ..heads import save_head

    save_head(fitted.head, folder, metadata)
    if fitted.candidates:
        with (folder / "sweep.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(fitted.candidates[0]))
            table.writeheader()
            table.writerows(fitted.candidates)


def _asked(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {"on": calibration["selection"], "coverage": calibration["coverage"], "folds": calibration["folds"]}
