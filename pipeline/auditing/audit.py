"""An audit whole: findings, their contact sheets, and every run scored again without the images that leaked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import DEFAULT, Backbone
from ..core.errors import PipelineError
from ..core.progress import Progress, shown, silent
from ..data import DEFAULT_DATA, on_disk, place
from ..data.augmentation import Views
from ..data.remarks import label_remarks
from ..evaluation.metrics import evaluate
from ..reports.pictures import contact_sheet
from ..runs.run import Run, list_runs
from ..stage_one.caches import CacheChoice, Features
from ..store import FeatureCache
from .cleaning import write_clean
from .findings import EVALUATED, Audit

MOST = 60  # images on a sheet
HARD = ("n", "accuracy", "accuracy_ci95", "balanced_accuracy", "balanced_accuracy_ci95", "macro_f1", "macro_f1_ci95",
        "per_class", "confusion")  # what labels and predictions alone give


def audit(
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    runs: Sequence[str] | None = None,
    threshold: float | None = None,
    sheets: str | Path | None = None,
    write: str | Path | None = None,
    seed: int = 0,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | bool = silent,
) -> dict[str, Any]:
    """Look for what makes scores of a data set untrustworthy, on cached features alone.

    Parameters
    ----------
    data, backbone, features, views, dataset_name
        Which cache, as for `train_head`. Of several views the plain one is looked at.
    runs : sequence of str, optional
        Names of runs to score again without the leaked images; all runs of this data set by default.
    threshold : float, optional
        Cosine from which two images count as nearly the same; see `pipeline.auditing`.
    sheets : path-like, optional
        Folder for the contact sheets; ``<runs_dir>/audit-<data set>`` by default.
    write : path-like, optional
        Where to write the cleaned list of images, see `pipeline.auditing.cleaning.clean`.

    Returns
    -------
    dict
        Plain values: those of `pipeline.auditing.Audit.to_dict`, ``runs`` (see its `Rescored`), ``sheets``, and
        ``cleaned`` where a list was written.
    """
    from .findings import audit_cache
    from .similar import NEAR

    data = on_disk(data, cache_dir)
    progress = shown(progress)

    with CacheChoice(data, backbone, features, views, cache_dir, dataset_name).opened(progress) as cache:
        found = audit_cache(cache, threshold=NEAR if threshold is None else threshold, seed=seed,
                            progress=progress)
        folder = Path(sheets) if sheets else Path(runs_dir) / f"audit-{found.dataset}"
        chosen = list_runs(Path(runs_dir)) if runs is None else [Run.open(name, Path(runs_dir)) for name in runs]
        if runs is None:
            chosen = [run for run in chosen if run.metrics["dataset"] == found.dataset
                      and tuple(run.metrics["classes"]) == cache.classes]
        return {
            **found.to_dict(), "notes": [*cache.notes, *label_remarks(cache), *found.notes],
            "runs": [scored.to_dict() for scored in rescore(cache, found, chosen)],
            "sheets": [str(path) for path in write_sheets(found, cache, folder)],
            **({"cleaned": write_clean(found, cache, write).to_dict()} if write else {}),
        }


def write_sheets(audit: Audit, cache: FeatureCache, folder: Path) -> list[Path]:
    """Write a PNG for each kind of finding that has images.

    Returns
    -------
    list of Path
        ``duplicates.png``, ``leaks.png``, ``label-errors.png``, ``outliers.png``, ``classes.png``, ``skipped.png``:
        those that there is something to show of.

    Raises
    ------
    PipelineError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(name, captions, cache, folder) for name, captions in _pages(audit, cache).items() if captions]
    except OSError as error:
        raise PipelineError(f"Cannot write contact sheets to {str(folder)!r}: {error.strerror or error}.") from error


def _pages(audit: Audit, cache: FeatureCache) -> dict[str, list[tuple[str, str]]]:
    """Return for each sheet its images and what is said of them."""

    def about(row: int) -> str:
        label = cache.labels[row]
        return f"{cache.splits[row]} · {cache.classes[label] if label >= 0 else 'unlabelled'}"

    leaked = set(audit.leaked.tolist())

    def members(chosen: Sequence) -> list[tuple[str, str]]:
        return [
            (cache.paths[row], f"#{number} {'copy' if group.exact else f'{group.similarity:.3f}'} · {about(row)}")
            for number, group in enumerate(chosen, 1) for row in group.rows
        ]

    return {
        "duplicates": members(audit.groups),
        "leaks": members([group for group in audit.groups if leaked & set(group.rows)]),
        "label-errors": [(cache.paths[row], f"{about(row)}\nrather {name} ({other:.2f})")
                         for row, name, _, other in audit.label_errors],
        "outliers": [(cache.paths[row], f"{about(row)} · {far:.2f}") for row, far, _ in audit.outliers],
        "classes": [(cache.paths[row], about(row)) for row in _examples(cache)],
        "skipped": list(audit.skipped),
    }  # fmt: skip


def _examples(cache: FeatureCache, each: int = 6) -> list[int]:
    """Return some images of every class, the first ones of train."""
    found: list[int] = []
    for label in range(len(cache.classes)):
        found += [int(row) for row in cache.indices("train") if cache.labels[row] == label][:each]
    return found


def _write(name: str, captions: list[tuple[str, str]], cache: FeatureCache, folder: Path) -> Path:
    left_out = len(captions) - MOST
    title = f"{name.replace('-', ' ')}: {len(captions)}" + (f", the first {MOST}" if left_out > 0 else "")
    path = folder / f"{name}.png"
    contact_sheet(place(cache.meta["root"]), captions[:MOST], title).save(path)
    return path


@dataclass(frozen=True)
class Rescored:
    """A run's figures on one split, with all images and without the leaked ones.

    Attributes
    ----------
    run, split : str
    leaked : int
        Images left out.
    everything, clean : dict
        See `evaluate`; of a fine-tuned run without those that take all probabilities. `clean` is empty if no image
        is left.
    """

    run: str
    split: str
    leaked: int
    everything: dict[str, Any]
    clean: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def rescore(cache: FeatureCache, audit: Audit, runs: Iterable[Run]) -> list[Rescored]:
    """Score runs of this data set again without the leaked images.

    A head that was trained on this very cache is applied to its features; of any other run the saved predictions
    are counted again.

    Raises
    ------
    PipelineError
        If a run is of other data.
    """
    leaked = {cache.paths[row] for row in audit.leaked.tolist()}
    found = []
    for run in runs:
        if run.metrics["dataset"] != audit.dataset or tuple(run.metrics["classes"]) != cache.classes:
            raise PipelineError(f"The run {run.name!r} is of the data set {run.metrics['dataset']!r} with "
                                f"{len(run.metrics['classes'])} classes, not of {audit.dataset!r}.")
        for split in EVALUATED:
            names, labels, scores, known = _scores(run, cache, split)
            if not names:
                continue
            kept = np.array([name not in leaked for name in names])
            everything, clean = (_figures(labels[chosen], scores[chosen], known) for chosen in (kept | True, kept))
            found.append(Rescored(run.name, split, int((~kept).sum()), everything, clean))
    return found


def _figures(labels: np.ndarray, scores: np.ndarray, known: Collection[str] | None) -> dict[str, Any]:
    figures = evaluate(labels, scores) if len(labels) else {}
    return {key: value for key, value in figures.items() if known is None or key in known}


def _scores(
    run: Run, cache: FeatureCache, split: str
) -> tuple[list[str], np.ndarray, np.ndarray, Collection[str] | None]:
    """Return names, labels and probabilities of a split, and which figures these can give (None: all)."""
    if run.metrics["kind"] == "head" and run.metrics.get("spec_sha256") == cache.spec.sha256:
        from ..heads import load_head, probabilities

        rows = cache.indices(split)
        head, _ = load_head(run.path)
        features = cache.read_rows(rows, view=None if run.metrics.get("tta") else 0)
        scores = probabilities(head, features, len(cache.classes))
        return [cache.paths[row] for row in rows], cache.labels[rows], scores, None
    place = {name: index for index, name in enumerate(cache.classes)}
    found = [row for row in run.predictions(split) if row["label"] in place]
    labels = np.array([place[row["label"]] for row in found], int)
    predicted = np.array([place[row["prediction"]] for row in found], int)
    return [row["filename"] for row in found], labels, np.eye(len(cache.classes))[predicted], HARD
