"""From scores to probabilities, and scores of training rows by models that did not see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import HeadError
from .scaling import Scaler

if TYPE_CHECKING:
    from .base import Head

FOLDS = 3
Fold = tuple[np.ndarray, np.ndarray]
"""Indices of the rows to train on and of those left out."""
MOST_SCORES = 20_000_000  # one number needs no more of them
LOWEST, HIGHEST = -12.0, 12.0  # of log T relative to the scores' own spread
CLOSE = 1e-4  # to the best log T


def fold_numbers(codes: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return each row's fold, (N,) int: stratified, in random order; -1 for the only row of its class, which is
    never left out. Importing scikit-learn for this would take longer than most fits."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    numbers = np.empty(len(codes), int)
    numbers[order] = np.arange(len(codes)) % folds
    numbers[np.bincount(codes)[codes] == 1] = -1
    return numbers


def stratified_folds(
    codes: np.ndarray, seed: int = 0, folds: int = FOLDS, views: int = 1
) -> list[Fold]:
    """Split rows into folds in which every class trains. Of images with several views, images are split.

    Parameters
    ----------
    codes : (N,) int array
        Classes of the rows, those of an image's views one after the other.
    seed, folds, views : int

    Returns
    -------
    list of (train, test) index arrays
        Fewer folds where a class has fewer rows; none where a class has a single row.
    """
    images = codes[::views]
    fewest = int(np.bincount(images).min())
    if fewest < 2:
        return []
    folds = min(folds, fewest)
    numbers = np.repeat(fold_numbers(images, folds, seed), views)
    return [(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)) for fold in range(folds)]


def out_of_fold_scores(score: Callable[[np.ndarray, np.ndarray], np.ndarray], codes: np.ndarray,
                       seed: int = 0, views: int = 1) -> np.ndarray | None:
    """Score each row by a model trained on the folds that it is not in.

    Parameters
    ----------
    score : callable
        From the indices of training rows and of rows to score to the (M, K) scores of the latter.
    codes : (N,) int array
        Classes; folds are stratified by them.
    seed : int
        Of the folds.
    views : int
        See `stratified_folds`.

    Returns
    -------
    (N, K) float64 array or None
        None where a class has a single row: then no fold can train on all classes.
    """
    result = np.empty((len(codes), codes.max() + 1))
    folds = stratified_folds(codes, seed, views=views)
    for train, test in folds:
        result[test] = score(train, test)
    return result if folds else None


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
