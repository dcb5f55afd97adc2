"""Heads made of class means and variances: `nearest-centroid`, `lda`, `gaussian-nb`; sums over rows in one pass."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..core.errors import HeadError
from .base import Head, LinearModel
from .rows import StreamedRows, map_rows, sum_rows
from .scores import fit_temperature, sample_for_temperature


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


class NearestCentroidHead(LinearModel):
    """The class whose mean is nearest; probabilities from distances, with a temperature from left-out rows.

    Parameters
    ----------
    scaling : str
        Feature scaling, one of `SCALINGS`.
    """

    streams = threads = True

    def __init__(self, scaling: str = "none"):
        self.scaling = scaling

    def _fit(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, validation: object) -> None:
        moments = Moments(len(self.classes_), Z.shape[1]).add(Z, codes)
        means = moments.means
        # -|z - m|²/2 without the part that all classes share
        intercept = -np.square(means).sum(axis=1) / 2
        self._keep(means, intercept)
        used = sample_for_temperature(len(codes), len(means)) & (moments.counts[codes] > 1)
        if used.any():  # a class of one row has no mean without it
            parts = map_rows(partial(_left_out, means, moments.counts), Z, codes, used)
            self.temperature_ = fit_temperature(np.concatenate(list(parts)), codes[used])


def _left_out(means: np.ndarray, counts: np.ndarray, Z: np.ndarray, codes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the scores of the rows `used`, each left out of its own class's mean, exactly."""
    Z, codes = Z[used], codes[used]
    counts, rows = counts[codes], np.arange(len(codes))
    scores = Z @ means.T - np.square(means).sum(axis=1) / 2
    length = np.square(Z).sum(axis=1).astype(np.float64)
    grown = (counts / (counts - 1)) ** 2
    scores[rows, codes] = (length - grown * (length - 2 * scores[rows, codes])) / 2
    return scores


class LDAHead(LinearModel):
    """Linear discriminant analysis: Gaussian classes with one covariance, shrunk towards a multiple of identity.

    Parameters
    ----------
    shrinkage : 'auto' or float in [0, 1]
        Share of the identity; 'auto' is Ledoit and Wolf's estimate ("A well-conditioned estimator for
        large-dimensional covariance matrices", 2004), here of the rows around their class means.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced' or None
        'balanced' takes all classes for equally likely, None for as likely as in training.

    Attributes
    ----------
    shrinkage_ : float
        The shrinkage used.
    """

    streams = squares = threads = True

    def __init__(self, shrinkage: str | float = 0.5, scaling: str = "none",
                 class_weight: str | None = None):
        self.shrinkage = shrinkage
        self.scaling = scaling
        self.class_weight = class_weight

    def _fit(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, validation: object) -> None:
        moments = Moments(len(self.classes_), Z.shape[1], gram=True).add(Z, codes)
        means, covariance = moments.means, moments.within()
        self.shrinkage_, level = self._shrinkage(Z, codes, means, covariance), covariance.trace() / len(covariance)
        overall = moments.squares.sum() / moments.counts.sum() / len(covariance)
        if level <= 1e-9 * overall:  # no spread within classes, as with one row each: any level gives the same classes
            self.shrinkage_, level = 1.0, overall or 1.0
        covariance *= 1 - self.shrinkage_
        covariance[np.diag_indices_from(covariance)] += max(self.shrinkage_, 1e-9) * level
        coef = np.linalg.solve(covariance, means.T).T
        prior = moments.counts / moments.counts.sum() * self._class_weights(codes)
        self._keep(coef, np.log(prior) - (coef * means).sum(axis=1) / 2)

    def _shrinkage(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, means: np.ndarray,
                   covariance: np.ndarray) -> float:
        if self.shrinkage != "auto":
            if isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1:
                raise HeadError(f"shrinkage is {self.shrinkage!r}; it must be 'auto' or in [0, 1].")
            return float(self.shrinkage)
        fourth = sum_rows(lambda rows, own: np.square(np.square(rows - means[own]).sum(axis=1)).sum(), Z, codes)
        return ledoit_wolf(covariance, fourth / len(Z), len(Z))


def ledoit_wolf(covariance: np.ndarray, fourth: float, n: int) -> float:
    """Return Ledoit and Wolf's shrinkage of a (D, D) covariance of `n` rows, `fourth` the mean of |row|^4."""
    size = len(covariance)
    squared = float(np.vdot(covariance, covariance))
    distance = squared - covariance.trace() ** 2 / size
    noise = (fourth - squared) / n
    return float(np.clip(noise / distance, 0, 1)) if distance > 0 else 1.0


class GaussianNBHead(Head):
    """Gaussian naive Bayes: independent normal features within each class. Its probabilities are overconfident.

    Parameters
    ----------
    smoothing : float
        Added to all variances, as a share of the largest variance of a feature.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced' or None
        'balanced' takes all classes for equally likely, None for as likely as in training.

    Attributes
    ----------
    means_, variances_ : (K, D) float64 arrays
        Of scaled features.
    log_prior_ : (K,) float64 array
    """

    streams = threads = True

    def __init__(self, smoothing: float = 0.1, scaling: str = "standardize", class_weight: str | None = None):
        self.smoothing = smoothing
        self.scaling = scaling
        self.class_weight = class_weight

    def _fit(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, validation: object) -> None:
        moments = Moments(len(self.classes_), Z.shape[1]).add(Z, codes)
        n = len(codes)
        overall = np.maximum(moments.squares.sum(axis=0) / n - np.square(moments.sums.sum(axis=0) / n), 0)
        self.means_ = moments.means
        self.variances_ = moments.variances() + self.smoothing * (overall.max() or 1.0)
        self.log_prior_ = np.log(moments.counts / moments.counts.sum() * self._class_weights(codes))

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        precision = 1 / self.variances_
        constant = self.log_prior_ - (np.log(self.variances_) + self.means_**2 * precision).sum(axis=1) / 2
        Z = Z.astype(np.float64)
        return constant + Z @ (self.means_ * precision).T - np.square(Z) @ precision.T / 2
