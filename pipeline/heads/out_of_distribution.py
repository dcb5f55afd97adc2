"""Images unlike anything seen in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rows import map_rows, one_thread

NEIGHBOURS = 5


@dataclass(frozen=True)
class OutOfDistribution:
    """Tells images that are unlike the training data, by the cosine to their nearest training rows.

    Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", 2022.

    Attributes
    ----------
    center : (D,) array
        Mean of the training rows.
    rows : (M, D) float16 array
        Training rows (a sample where there are many), centered, of length 1.
    threshold : float
        Cosines below it are unlike the training data.
    """

    center: np.ndarray
    rows: np.ndarray
    threshold: float

    def similarity(self, X: np.ndarray) -> np.ndarray:
        """Return the (N,) mean cosine of rows to their nearest training rows."""
        return _nearest(self.rows, _directions(X, self.center), 0)

    def unlike(self, X: np.ndarray) -> np.ndarray:
        """Return (N,) bool: whether a row is unlike anything seen in training."""
        return self.similarity(X) < self.threshold


def fit_out_of_distribution(X: np.ndarray, share: float = 0.01, most: int = 5000, seed: int = 0) -> OutOfDistribution:
    """Learn what training rows look like.

    Parameters
    ----------
    X : (N, D) array
        Training rows.
    share : float
        Of the training rows themselves, each compared with the others, that would be called unlike.
    most : int
        Rows kept at the most.
    seed : int
        Of the sample.
    """
    if len(X) > most:
        X = X[np.sort(np.random.default_rng(seed).choice(len(X), most, replace=False))]
    center = X.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows = _directions(X, center).astype(np.float16)
    own = _nearest(rows, rows.astype(np.float32), 1)
    return OutOfDistribution(center, rows, float(np.quantile(own, share)))


def _directions(X: np.ndarray, center: np.ndarray) -> np.ndarray:
    moved = np.asarray(X, np.float32) - center
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _nearest(rows: np.ndarray, queries: np.ndarray, skipped: int) -> np.ndarray:
    """Return the mean cosine to the nearest rows, leaving out the `skipped` nearest (a row itself)."""
    kept = rows.astype(np.float32).T
    last = min(len(rows), NEIGHBOURS + skipped)
    if last <= skipped:
        return np.full(len(queries), -1.0)  # a single row knows nothing of likeness: nothing is unlike it

    def piece(part: np.ndarray) -> np.ndarray:
        return -np.sort(np.partition(-(part @ kept), last - 1, axis=1)[:, :last], axis=1)[:, skipped:].mean(axis=1)

    with one_thread():
        return np.concatenate(list(map_rows(piece, queries)))
