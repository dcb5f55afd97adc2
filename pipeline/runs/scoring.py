"""How well something trained does on every split, as run folders tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.metrics import evaluate

if TYPE_CHECKING:
    pass

SPLITS = ("train", "val", "test")


def score_splits(splits: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Evaluate each split that has images.

    Parameters
    ----------
    splits, labels : (N,) arrays
    scores : (N, K) array
        Probabilities.
    """
    return {name: evaluate(labels[splits == name], scores[splits == name]) for name in SPLITS if (splits == name).any()}


def _seconds(extract_seconds: float, train_seconds: float) -> dict[str, float]:
    return {
        "extract": round(extract_seconds, 3),
        "train": round(train_seconds, 3),
        "total": round(extract_seconds + train_seconds, 3),
    }
