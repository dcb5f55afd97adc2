"""Folds of a cross-validation, and scores of training rows by models that did not see them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FOLDS = 3
Fold = tuple[np.ndarray, np.ndarray]
"""Indices of the rows to train on and of those left out."""


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


def some_of(rows: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Return ascending rows (n,): all, or a random `most` of them."""
    return rows if len(rows) <= most else np.sort(np.random.default_rng(seed).permutation(rows)[:most])


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
