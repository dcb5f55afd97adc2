"""Sums over rows that many heads are made of: one pass, any number of chunks."""

from __future__ import annotations

import numpy as np

from .rows import StreamedRows
from .threads import map_rows


class Moments:
    """Count, sum of features and sum of squares of each class, and optionally the Gram matrix of all rows.

    Sums are float64. Add rows with `add`, as often as needed; rows should be near mean 0 where precision matters.

    Attributes
    ----------
    counts : (K,) float64 array
    sums : (K, D) float64 array
    squares : (K, D) float64 array
    gram : (D, D) float64 array or None
        Sum of x x^T over all rows.
    """

    def __init__(self, n_classes: int, n_features: int, gram: bool = False):
        self.counts = np.zeros(n_classes)
        self.sums = np.zeros((n_classes, n_features))
        self.squares = np.zeros((n_classes, n_features))
        self.gram = np.zeros((n_features, n_features)) if gram else None

    def add(self, Z: np.ndarray | StreamedRows, codes: np.ndarray) -> Moments:
        """Add (N, D) rows with their (N,) class codes; return itself."""
        self.counts += np.bincount(codes, minlength=len(self.counts))
        for sums, squares, gram in map_rows(self._of, Z, codes):
            self.sums += sums
            self.squares += squares
            if self.gram is not None:
                self.gram += gram
        return self

    def _of(self, rows: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        rows = rows.astype(np.float64)
        member = np.zeros((len(self.counts), len(codes)))
        member[codes, np.arange(len(codes))] = 1
        return member @ rows, member @ np.square(rows), None if self.gram is None else rows.T @ rows

    @property
    def means(self) -> np.ndarray:
        """The (K, D) class means."""
        return self.sums / self.counts[:, None]

    def within(self) -> np.ndarray:
        """Return the (D, D) covariance of rows around their own class's mean, divided by N."""
        assert self.gram is not None
        return (self.gram - self.sums.T @ self.means) / self.counts.sum()

    def variances(self) -> np.ndarray:
        """Return the (K, D) variance of each feature within each class, divided by its count."""
        return np.maximum(self.squares / self.counts[:, None] - self.means**2, 0)
