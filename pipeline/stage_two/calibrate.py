"""How sure a trained head is: honest probabilities, sets of possible labels, images unlike anything seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.errors import CacheError, PipelineError, UnknownNameError
from ..store import FeatureCache
from .fit import HELD_OUT, FittedHead, training_rows

WAYS = ("cv", "val")


@dataclass(frozen=True)
class Calibration:
    """On what a head's probabilities are made honest. The test split takes no part.

    Attributes
    ----------
    on : {'cv', 'val'}
        Predictions for training images by heads trained on the other folds, or for the val split.
    coverage : float
        How often sets of possible labels shall hold the truth.
    folds : int
    """

    on: str = "cv"
    coverage: float = 0.9
    folds: int = 5

    def __post_init__(self) -> None:
        if self.on not in WAYS:
            raise UnknownNameError("split to calibrate on", self.on, WAYS)
        if not 0 < self.coverage < 1:
            raise PipelineError(f"The coverage is how often sets hold the truth, above 0 and below 1, "
                                f"not {self.coverage}.")


def calibrated(cache: FeatureCache, fitted: FittedHead, how: Calibration) -> FittedHead:
    """Fit a head's temperature and the threshold of its sets, and learn what its training images look like.

    The head itself is changed. Its `calibration` is the report of `pipeline.heads.calibrate` with ``folds``,
    ``same_rows`` (whether the rows used are those that chose its settings; then the figures are optimistic) and
    ``seconds``.

    Raises
    ------
    CacheError
        If there are no val images to calibrate on, where that was asked for, or predictions are averaged over views.
    HeadError
        If rows are too few.
    """
    from ..heads import calibrate, fit_out_of_distribution
    from ..heads.scores import plain

    if fitted.tta:
        raise CacheError("What makes the probabilities of plain images honest does not hold for averages over views: "
                         "leave --calibrate or --tta out.")
    begin = time.perf_counter()
    X, y = training_rows(cache)
    X_val, y_val = cache.split("val", view=0) if how.on == "val" else (None, None)
    if y_val is not None and not len(y_val):
        raise CacheError(f"{cache.path} has no labelled val images to calibrate on. Calibrate by cross-validation.")
    report = calibrate(fitted.head, X, y, X_val=X_val, y_val=y_val, folds=how.folds,
                       seed=fitted.settings.get("seed", 0), coverage=how.coverage)
    fitted.head.familiarity_ = fit_out_of_distribution(plain(X))
    seconds = time.perf_counter() - begin
    report |= {"folds": how.folds, "same_rows": report["selection"] == fitted.selection, "seconds": round(seconds, 3)}
    return replace(fitted, seconds=fitted.seconds + seconds, calibration=report)


def held_out_figures(
    cache: FeatureCache, fitted: FittedHead, splits: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """Return a head's calibration with what it did to images that took no part in it.

    Parameters
    ----------
    splits, labels : (N,) arrays
    scores : (N, K) array
        The calibrated head's probabilities.

    Returns
    -------
    dict
        Its `calibration`, and ``held_out``: for val and test figures ``before`` and ``after``, ``set_coverage`` (how
        often the sets of possible labels hold the truth), ``set_size`` (labels in one, on average) and
        ``unfamiliar`` (share of the images that are unlike the training images).
    """
    from ..heads import prediction_sets
    from ..heads.calibration import at_temperature, figures

    found = {}
    for split in HELD_OUT:
        rows = splits == split
        if not rows.any():
            continue
        own, after = labels[rows], scores[rows]
        sets = prediction_sets(after, fitted.head.set_threshold_)
        found[split] = {
            "n": len(own), "before": figures(own, at_temperature(after, 1 / fitted.calibration["temperature"])),
            "after": figures(own, after), "set_coverage": float(sets[np.arange(len(own)), own].mean()),
            "set_size": float(sets.sum(axis=1).mean()), "unfamiliar": _unfamiliar(cache, fitted, split),
        }  # fmt: skip
    return {**fitted.calibration, "held_out": found}


def _unfamiliar(cache: FeatureCache, fitted: FittedHead, split: str) -> float:
    found = [fitted.head.familiarity_.unlike(X) for _, X in cache.stream(split=split, view=0)]
    return float(np.concatenate(found).mean())
