"""From scores to probabilities: numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import HeadError
from .scaling import Scaler

if TYPE_CHECKING:
    from .base import Head


def linear_scores(X: np.ndarray, scaler: Scaler, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Return the (N, K) scores of raw (N, D) features; `coef` (K, D) has an affine scaling folded in."""
    if scaler.kind == "l2":
        X = scaler(X)
    return X @ coef.T.astype(X.dtype) + intercept


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return exp(scores), each row divided by its sum."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def probabilities(head: Head, X: Any, n_classes: int) -> np.ndarray:
    """Return a head's probabilities with one column for every class id, also for those it never saw.

    Parameters
    ----------
    head : Head
        Fitted on integer class ids.
    X : (N, D) array, or (N, V, D) of V views of each image
        Probabilities are averaged over views.
    n_classes : int
        K, the number of classes of the data set.

    Returns
    -------
    (N, K) float64 array
    """
    if X.ndim == 3:
        return np.mean([probabilities(head, X[:, view], n_classes) for view in range(X.shape[1])], axis=0)
    ids = np.asarray(head.classes_)
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= n_classes:
        raise HeadError(f"The head knows the labels {ids.tolist()[:8]}, which are no class ids below {n_classes}.")
    result = np.zeros((len(X), n_classes))
    if len(X):
        result[:, ids] = head.predict_proba(X)
    return result


def prediction_sets(found: np.ndarray, threshold: float) -> np.ndarray:
    """Return the (N, K) bool sets of possible labels: those of `threshold` or more, and always the best one."""
    sets = np.asarray(found) >= threshold
    sets[np.arange(len(sets)), np.argmax(found, axis=1)] = True
    return sets


def plain(X: np.ndarray) -> np.ndarray:
    """Return the plain view (N, D) of (N, V, D) features; (N, D) are it themselves."""
    return X[:, 0] if X.ndim == 3 else X
