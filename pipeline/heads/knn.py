"""The `knn` head: votes of the nearest training rows, found by brute force (exact, and plain arrays on disk)."""

from __future__ import annotations

import numpy as np

from ..core.errors import HeadError, known
from .base import Head
from .scaling import chunks

METRICS = ("cosine", "euclidean")
VOTES = ("uniform", "exp")
BLOCK = 512  # query rows at a time


class KNNHead(Head):
    """k nearest neighbours, plain or with DINOv2's votes.

    Parameters
    ----------
    k : int
        Neighbours that vote; all rows where there are fewer.
    metric : {'cosine', 'euclidean'}
    votes : {'exp', 'uniform'}
        `exp` weighs a neighbour with exp(similarity / T), similarity being the cosine, or minus half the squared
        distance (DINOv2's k-NN evaluation: cosine, T = 0.07, k 10 to 200); `uniform` counts.
    T : float
        Temperature of `exp`.
    scaling : str
        Feature scaling, one of `SCALINGS`.

    Attributes
    ----------
    rows_ : (N, D) array
        Scaled training rows, of length 1 for `cosine`.
    codes_ : (N,) int array
        Their classes.
    """

    threads = True

    def __init__(self, k: int = 20, metric: str = "cosine", votes: str = "exp", T: float = 0.07,
                 scaling: str = "standardize"):
        self.k = k
        self.metric = metric
        self.votes = votes
        self.T = T
        self.scaling = scaling

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        known("metric", self.metric, METRICS)
        known("votes", self.votes, VOTES)
        if self.k < 1 or not self.T > 0:
            raise HeadError(f"k is {self.k} and T is {self.T}; k must be at least 1 and T above 0.")
        self.rows_, self.codes_ = self._prepared(Z), codes.astype(np.int64)

    def _prepared(self, Z: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return np.array(Z)
        return Z / np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), np.finfo(Z.dtype).tiny)

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        """Return log vote shares, so that softmax gives the shares back."""
        shares = np.concatenate([self._votes(part) for part in chunks(self._prepared(Z), BLOCK)])
        return np.log(np.maximum(shares, np.finfo(np.float64).tiny))

    def _votes(self, queries: np.ndarray) -> np.ndarray:
        nearest, likeness = _nearest(self._similarity(queries), min(self.k, len(self.rows_)))
        weight = np.ones_like(likeness)
        if self.votes == "exp":
            weight = np.exp((likeness - likeness[:, :1]) / self.T)
        shares = np.zeros((len(queries), len(self.classes_)))
        np.add.at(shares, (np.arange(len(queries))[:, None], self.codes_[nearest]), weight)
        return shares / shares.sum(axis=1, keepdims=True)

    def _similarity(self, queries: np.ndarray) -> np.ndarray:
        products = queries @ self.rows_.T.astype(queries.dtype)
        if self.metric == "cosine":
            return products
        lengths = np.square(self.rows_).sum(axis=1) / 2, np.square(queries).sum(axis=1, keepdims=True) / 2
        return products.astype(np.float64) - lengths[0] - lengths[1]


def _nearest(likeness: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n, k) places of each row's largest values, largest first, and these as float64.

    Of equal values the earlier one counts as larger.
    """
    least = np.partition(likeness, -k, axis=1)[:, -k, None]
    rows, places = np.nonzero(likeness >= least)  # a few more than k where several equal the least
    values = likeness[rows, places]
    order = np.lexsort((places, -values, rows))
    counts = np.bincount(rows, minlength=len(likeness))
    chosen = order[(np.cumsum(counts) - counts)[:, None] + np.arange(k)]
    return places[chosen], values[chosen].astype(np.float64)
