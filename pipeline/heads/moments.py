"""Sums over rows that many heads are made of: one pass, any number of chunks."""

from __future__ import annotations

import numpy as np

from .scaling import chunks


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

    def add(self, Z: np.ndarray, codes: np.ndarray) -> Moments:
        """Add (N, D) rows with their (N,) class codes; return itself."""
        for rows, own in zip(chunks(Z), chunks(codes), strict=True):
            rows = rows.astype(np.float64)
            member = np.zeros((len(self.counts), len(own)))
            member[own, np.arange(len(own))] = 1
            self.counts += member.sum(axis=1)
            self.sums += member @ rows
            self.squares += member @ np.square(rows)
            if self.gram is not None:
                self.gram += rows.T @ rows
        return self

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
