"""Feature scaling: part of every head, learned from its training rows and saved with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..core.errors import HeadError, known
from .rows import StreamedRows, sum_rows

SCALINGS = {
    "none": "features as they are",
    "standardize": "each feature to mean 0 and standard deviation 1 over the training rows",
    "l2": "each row to length 1",
    "pca-whiten": "principal axes holding 99 % of the variance, each to standard deviation 1",
}
WHITENED_VARIANCE = 0.99
CHUNK = 8192  # rows handled at a time, so that temporary copies stay small


@dataclass(frozen=True)
class Scaler:
    """A fitted scaling; call it on an (N, D) array to get the scaled (N, R) array.

    Attributes
    ----------
    kind : str
        One of `SCALINGS`.
    center : (D,) float64 array or None
        Subtracted first.
    scale : (D,) or (D, R) float64 array or None
        Multiplied elementwise, or as a matrix.
    """

    kind: str
    center: np.ndarray | None = None
    scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        known("scaling", self.kind, SCALINGS)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        if self.kind == "l2":
            return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(X.dtype).tiny)
        if self.center is None or self.scale is None:
            return X
        centered = X - self.center.astype(X.dtype)
        scale = self.scale.astype(X.dtype)
        if scale.ndim == 2:
            return centered @ scale
        centered *= scale
        return centered

    def after(self, factors: np.ndarray) -> Scaler:
        """Return this scaling of columns that are first multiplied by (D,) factors; 0 leaves one out.

        Raises
        ------
        HeadError
            If rows are scaled to length 1, which is no matter of columns.
        """
        if self.kind == "l2":
            raise HeadError("The scaling 'l2' takes rows as a whole; it cannot be had for features of several layers.")
        if self.center is None or self.scale is None:
            return Scaler(self.kind, np.zeros(len(factors)), factors)
        center = np.divide(self.center, factors, out=np.zeros(len(factors)), where=factors != 0)
        return Scaler(self.kind, center, self.scale * (factors if self.scale.ndim == 1 else factors[:, None]))

    def fold(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewrite linear scores of scaled features as linear scores of the raw ones.

        Parameters
        ----------
        coef : (K, R) array
        intercept : (K,) array

        Returns
        -------
        (K, D) array, (K,) array
            Float64, for raw features; for ``"l2"``, which is not affine, as given: for rows of length 1.
        """
        coef, intercept = np.asarray(coef, np.float64), np.asarray(intercept, np.float64)
        if self.center is None or self.scale is None:
            return coef, intercept
        coef = coef * self.scale if self.scale.ndim == 1 else coef @ self.scale.T
        return coef, intercept - coef @ self.center


def fit_scaler(kind: str, X: np.ndarray | StreamedRows) -> Scaler:
    """Learn the scaling called `kind` from the (N, D) rows `X`."""
    known("scaling", kind, SCALINGS)
    if kind in ("none", "l2"):
        return Scaler(kind)
    center, deviation = mean_and_deviation(X)
    if kind == "standardize":
        return Scaler(kind, center, 1 / deviation)
    return Scaler(kind, center, _whitening(X, center))


def mean_and_deviation(X: np.ndarray | StreamedRows) -> tuple[np.ndarray, np.ndarray]:
    """Return each feature's mean and standard deviation, float64; a constant feature's deviation is 1."""
    some = X[:CHUNK] if isinstance(X, np.ndarray) else X.at(np.arange(min(len(X), CHUNK)))
    near = some.mean(axis=0, dtype=np.float64)  # sums of squares are taken around it: one pass, and little rounding

    def sums(rows: np.ndarray) -> np.ndarray:
        moved = rows - near
        return np.stack([moved.sum(axis=0), np.square(moved).sum(axis=0)])

    beside, squares = sum_rows(sums, X) / len(X)
    center = near + beside
    return center, safe_deviation(center, np.maximum(squares - beside**2, 0))


def safe_deviation(center: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the square root of `variance`, 1 where it is nothing but rounding error of a constant."""
    noise = 10 * np.finfo(np.float32).eps * np.abs(center)
    deviation = np.sqrt(variance)
    return np.where(deviation > np.maximum(noise, np.finfo(np.float64).tiny), deviation, 1.0)


def chunks(X: np.ndarray, size: int = CHUNK) -> Iterator[np.ndarray]:
    """Yield consecutive groups of at most `size` rows."""
    for start in range(0, len(X), size):
        yield X[start : start + size]


def _whitening(X: np.ndarray | StreamedRows, center: np.ndarray) -> np.ndarray:
    """Return the (D, R) matrix that turns centered rows into uncorrelated ones of deviation 1."""
    if isinstance(X, np.ndarray) and len(X) < X.shape[1]:
        _, lengths, axes = np.linalg.svd(X - center, full_matrices=False)
        variances, axes = lengths**2 / len(X), axes.T
    else:
        variances, axes = np.linalg.eigh(sum_rows(lambda rows: _gram(rows - center), X) / len(X))
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    held = np.cumsum(variances)
    if not held.size or held[-1] == 0:
        raise HeadError("All training rows are the same: 'pca-whiten' finds no axis; use scaling 'none'.")
    kept = int(np.searchsorted(held, WHITENED_VARIANCE * held[-1])) + 1
    return axes[:, :kept] / np.sqrt(variances[:kept])


def _gram(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows
