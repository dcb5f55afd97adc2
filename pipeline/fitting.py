"""Training heads on a cache: as they are, with settings chosen fairly, or several times over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CacheError, UnknownNameError
from .evaluation import evaluate
from .progress import Progress, silent
from .store import FeatureCache

if TYPE_CHECKING:
    from .heads import Head

HELD_OUT = ("test", "val")  # what a figure is taken on: the first of these that there is


@dataclass(frozen=True)
class Sweep:
    """How a head's settings are chosen. The test split takes no part.

    Attributes
    ----------
    grid : mapping from setting to values, optional
        All combinations are tried; by default the head's own grid.
    on : {'cv', 'val'}
        Cross-validation on the training rows, or the val split.
    folds : int
    metric : str
        ``accuracy``, ``balanced_accuracy``, ``macro_f1`` or ``log_loss``.
    one_standard_error : bool
        Take the simplest candidate within one standard error of the best.
    """

    grid: Mapping[str, Sequence[Any]] | None = None
    on: str = "cv"
    folds: int = 5
    metric: str = "accuracy"
    one_standard_error: bool = False

    def __post_init__(self) -> None:
        if self.on not in ("cv", "val"):
            raise UnknownNameError("way to choose", self.on, ("cv", "val"))


@dataclass(frozen=True)
class FittedHead:
    """A trained head, and what its training took.

    Attributes
    ----------
    name : str
        As in `HEADS`.
    head : Head
    settings : dict
        Those that were given or chosen.
    seconds : float
        The search for settings included.
    selection : {'val', 'cv', 'last'}
        How settings, or the epoch, were chosen. A figure on val is optimistic after `val`.
    candidates : list of dict
        What a sweep tried, a row a candidate.
    repeats : dict
        Of each split, `accuracies` over several seeds with their `mean` and `sd`; empty for one seed.
    calibration : dict
        How its probabilities were made honest, see `pipeline.certainty`; empty where they were not.
    """

    name: str
    head: Head
    settings: dict[str, Any]
    seconds: float
    selection: str
    candidates: list[dict[str, Any]] = field(default_factory=list)
    repeats: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)


def fit_head(
    cache: FeatureCache, name: str, settings: Mapping[str, Any], seed: int = 0, *, sweep: Sweep | None = None,
    repeats: int = 1, folder: Path | None = None, jobs: int = -1, progress: Progress = silent,
) -> FittedHead:  # fmt: skip
    """Train a head on a cache's train split.

    Parameters
    ----------
    cache : FeatureCache
    name : str
        As in `HEADS`.
    settings : mapping
        Of the head.
    seed : int
    sweep : Sweep, optional
        Choose further settings. Without it, a head that is trained by epochs sees val, to keep the best of them.
    repeats : int
        Train with so many seeds and note the spread; the first one's head is returned.
    folder : Path, optional
        Where a sweep keeps finished fits.
    jobs : int
        Processes of a sweep; -1 is one a core.

    Raises
    ------
    CacheError
        If there is nothing to train on, or to choose on.
    """
    begin = time.perf_counter()
    X, y = training_rows(cache)
    candidates: list[dict[str, Any]] = []
    chosen = dict(settings)
    if sweep is None:
        fitted = _fit(cache, name, X, y, settings, seed)
        selection = getattr(fitted, "selection_", "last")
    else:
        fitted, selection, candidates, found = _swept(cache, name, X, y, settings, seed, sweep, folder, jobs, progress)
        chosen |= found
    spread = _spread(cache, [fitted] + [_fit(cache, name, X, y, chosen, seed + more) for more in range(1, repeats)])
    seconds = (time.perf_counter() - begin) / max(1, repeats if sweep is None else 1)
    return FittedHead(name, fitted, {**chosen, "seed": seed}, seconds, selection, candidates, spread)


def training_rows(cache: FeatureCache) -> tuple[np.ndarray, np.ndarray]:
    """Return the train split's features (n, D) and labels (n,).

    Raises
    ------
    CacheError
        If there are not two classes to tell apart.
    """
    X, y = cache.split("train", view=0)
    if len(np.unique(y)) < 2:
        raise CacheError(f"{cache.path} has {len(y)} labelled training images, of {len(np.unique(y))} classes: "
                         "a classifier needs two classes at least.")
    return X, y


def _fit(cache: FeatureCache, name: str, X: np.ndarray, y: np.ndarray, settings: Mapping[str, Any], seed: int) -> Head:
    from .heads import HEADS, make_head

    head = make_head(name, seed=seed, **settings)
    X_val, y_val = cache.split("val", view=0) if HEADS[name].needs_torch else (X[:0], y[:0])
    return head.fit(X, y, X_val, y_val) if len(y_val) else head.fit(X, y)


def _swept(
    cache: FeatureCache, name: str, X: np.ndarray, y: np.ndarray, settings: Mapping[str, Any], seed: int, sweep: Sweep,
    folder: Path | None, jobs: int, progress: Progress,
) -> tuple[Head, str, list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    from .heads import sweep_head

    X_val, y_val = cache.split("val", view=0) if sweep.on == "val" else (None, None)
    if y_val is not None and not len(y_val):
        raise CacheError(f"{cache.path} has no labelled val images to choose settings on. Choose by cross-validation.")
    result = sweep_head(
        name, X, y, X_val=X_val, y_val=y_val, grid=sweep.grid, fixed=settings, folds=sweep.folds, seed=seed,
        metric=sweep.metric, one_standard_error=sweep.one_standard_error, folder=folder, n_jobs=jobs, progress=progress,
    )  # fmt: skip
    return result.head, result.selection, result.rows, result.settings


def _spread(cache: FeatureCache, heads: list[Head]) -> dict[str, Any]:
    """Return each held-out split's accuracies over several seeds."""
    from .heads import probabilities

    found = {}
    for split in HELD_OUT if len(heads) > 1 else ():
        X, y = cache.split(split, view=0)
        if len(y):
            scores = [evaluate(y, probabilities(head, X, len(cache.classes)))["accuracy"] for head in heads]
            found[split] = {"accuracies": scores, "mean": float(np.mean(scores)), "sd": float(np.std(scores, ddof=1))}
    return found
