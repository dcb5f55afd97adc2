"""Scores for training rows by models that did not see them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.model_selection import StratifiedKFold

FOLDS = 3


def stratified_folds(codes: np.ndarray, seed: int = 0, folds: int = FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split rows into folds in which every class trains.

    Returns
    -------
    list of (train, test) index arrays
        Fewer folds where a class has fewer rows; none where a class has a single row.
    """
    fewest = int(np.bincount(codes).min())
    if fewest < 2:
        return []
    return list(StratifiedKFold(min(folds, fewest), shuffle=True, random_state=seed).split(codes, codes))


def out_of_fold_scores(score: Callable[[np.ndarray, np.ndarray], np.ndarray], codes: np.ndarray,
                       seed: int = 0) -> np.ndarray | None:
    """Score each row by a model trained on the folds that it is not in.

    Parameters
    ----------
    score : callable
        From the indices of training rows and of rows to score to the (M, K) scores of the latter.
    codes : (N,) int array
        Classes; folds are stratified by them.
    seed : int
        Of the folds.

    Returns
    -------
    (N, K) float64 array or None
        None where a class has a single row: then no fold can train on all classes.
    """
    result = np.empty((len(codes), codes.max() + 1))
    folds = stratified_folds(codes, seed)
    for train, test in folds:
        result[test] = score(train, test)
    return result if folds else None
