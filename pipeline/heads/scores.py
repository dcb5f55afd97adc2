"""From scores to probabilities: numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import HeadError
from .scaling import Scaler

if TYPE_CHECKING:
    from .base import Head

MOST_SCORES = 20_000_000  # one number needs no more of them
LOWEST, HIGHEST = -12.0, 12.0  # of log T relative to the scores' own spread
CLOSE = 1e-4  # to the best log T


def sample_for_temperature(n: int, n_classes: int) -> np.ndarray:
    """Return (N,) bool: the rows to fit a temperature on; all, unless their scores would fill the memory."""
    used = np.zeros(n, bool)
    used[:: -(-n * n_classes // MOST_SCORES)] = True
    return used


def fit_temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """Return the T with the smallest log loss of ``softmax(scores / T)``.

    Source: Guo et al., "On calibration of modern neural networks", 2017. The order of classes within a row, and so
    the accuracy, does not change. That N of N rows are right does not make the next one certain: as in Platt,
    "Probabilistic outputs for support vector machines", 1999, a share 1 / (N + 2) of each row counts as wrong, here as
    of its likeliest other class.

    Parameters
    ----------
    scores : (N, K) array
        Of rows that did not train the head.
    codes : (N,) int array
        True classes.
    """
    scores = np.asarray(scores, np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    spread = float(-scores.mean()) or 1.0
    own = scores[np.arange(len(codes)), codes]
    others = scores.copy()
    others[np.arange(len(codes)), codes] = -np.inf
    doubt = 1 / (len(codes) + 2)
    linear = (1 - doubt) * own.mean() + doubt * others.max(axis=1).mean()
    low, high, place = LOWEST, HIGHEST, 0.0  # of log T; the loss is convex in 1 / T, so its slope changes sign once
    while high - low > CLOSE:
        factor = np.exp(-place) / spread
        shares = np.exp(scores * factor)
        shares /= shares.sum(axis=1, keepdims=True)
        weighed = shares * scores
        means = weighed.sum(axis=1)
        slope = means.mean() - linear
        bend = (np.vdot(weighed, scores) - means @ means) / len(means)
        low, high = (place, high) if slope > 0 else (low, place)
        newton = place + slope / (bend * factor) if bend > 0 else low
        if low < newton < high and abs(newton - place) < CLOSE:
            place = newton
            break
        place = newton if low < newton < high else (low + high) / 2
    return float(spread * np.exp(place))


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
