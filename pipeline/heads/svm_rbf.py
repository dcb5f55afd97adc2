"""The `svm-rbf` head: scikit-learn's kernel machine, kept as plain arrays."""

from __future__ import annotations

import numpy as np

from .base import ClassWeight, Head
from .errors import HeadError
from .out_of_fold import out_of_fold_scores
from .scaling import chunks
from .temperature import fit_temperature

WHOLE_KERNEL = 12_000  # rows up to which the kernel matrix is held in memory: 1.2 GB at the most
BLOCK_VALUES = 4_000_000  # pairwise decisions held at a time


class SVMRBFHead(Head):
    """A support vector machine with a Gaussian kernel; temperature fitted on out-of-fold margins.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    gamma : 'scale' or float
        Of the kernel exp(-gamma |x - y|²); 'scale' is 1 / (D x variance).
    gamma_factor : float
        What `gamma` is multiplied by: with 'scale', a width that means the same for any number of features.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    seed : int
        Of the folds.

    Attributes
    ----------
    support_ : (S, D) array
        Support vectors, scaled, grouped by class.
    support_counts_ : (K,) int array
        How many each class has.
    dual_coef_ : (K - 1, S) float64 array
        Their coefficients against each other class, in the order of the classes without their own.
    intercept_ : (K (K - 1) / 2,) float64 array
        Of each pair of classes.
    gamma_ : float
    """

    def __init__(self, C: float = 10.0, gamma: str | float = "scale", gamma_factor: float = 1.0,
                 scaling: str = "standardize", class_weight: ClassWeight = None, seed: int = 0):
        self.C = C
        self.gamma = gamma
        self.gamma_factor = gamma_factor
        self.scaling = scaling
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        self.gamma_ = self._gamma(Z)
        left_out = out_of_fold_scores(
            lambda train, test: self._left_out(Z, codes, train, test), codes, self.seed, self.views_
        )
        self._learn(Z, codes)
        self.temperature_ = 1.0
        if left_out is not None:
            self.temperature_ = fit_temperature(left_out[:: self.views_], codes[:: self.views_])  # for plain images

    def _left_out(self, Z: np.ndarray, codes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        self._learn(Z[train], codes[train])
        return self._scores(Z[test])

    def _gamma(self, Z: np.ndarray) -> float:
        if not self.gamma_factor > 0:
            raise HeadError(f"gamma_factor is {self.gamma_factor!r}; it must be above 0.")
        if self.gamma == "scale":
            return float(self.gamma_factor / (Z.shape[1] * (Z.var(dtype=np.float64) or 1.0)))
        if isinstance(self.gamma, str) or not self.gamma > 0:
            raise HeadError(f"gamma is {self.gamma!r}; it must be 'scale' or a number above 0.")
        return float(self.gamma_factor * self.gamma)

    def _learn(self, Z: np.ndarray, codes: np.ndarray) -> None:
        from sklearn.svm import SVC

        # matrix products make the kernel many times faster than the solver makes its rows one by one
        whole = len(Z) <= WHOLE_KERNEL
        model = SVC(C=self.C, kernel="precomputed" if whole else "rbf", gamma=self.gamma_,
                    class_weight=self._code_weights(codes), cache_size=500)
        model.fit(gaussian_kernel(Z, Z, self.gamma_) if whole else Z, codes)
        self.support_ = Z[model.support_]
        self.support_counts_ = np.asarray(model.n_support_, np.int64)
        # with two classes scikit-learn shows the signs turned round
        sign = -1 if len(self.classes_) == 2 else 1
        self.dual_coef_, self.intercept_ = sign * model.dual_coef_, sign * model.intercept_

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        block = max(1, BLOCK_VALUES // max(len(self.classes_) ** 2, len(self.support_)))
        return np.concatenate([one_against_rest(self._pairs(part)) for part in chunks(Z, block)])

    def _pairs(self, Z: np.ndarray) -> np.ndarray:
        """Return the (N, K, K) antisymmetric decisions: above 0 at [i, j] is a vote for class i against j."""
        kernel = gaussian_kernel(Z, self.support_, self.gamma_)
        n, stops = len(self.classes_), np.cumsum(self.support_counts_)
        parts = np.zeros((len(Z), n, n))
        for own, (start, stop) in enumerate(zip(stops - self.support_counts_, stops, strict=True)):
            others = np.delete(np.arange(n), own)
            parts[:, own, others] = kernel[:, start:stop] @ self.dual_coef_[:, start:stop].T
        i, j = np.triu_indices(n, 1)
        decisions = np.zeros_like(parts)
        decisions[:, i, j] = parts[:, i, j] + parts[:, j, i] + self.intercept_
        decisions[:, j, i] = -decisions[:, i, j]
        return decisions


def gaussian_kernel(A: np.ndarray, B: np.ndarray, gamma: float) -> np.ndarray:
    """Return exp(-gamma |a - b|²) of (N, D) and (M, D) rows: (N, M) float64."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    found = A @ B.T
    found *= -2
    found += np.square(A).sum(axis=1)[:, None]
    found += np.square(B).sum(axis=1)
    np.maximum(found, 0, out=found)
    found *= -gamma
    return np.exp(found, out=found)


def one_against_rest(decisions: np.ndarray) -> np.ndarray:
    """Turn (N, K, K) pairwise decisions into (N, K) scores: votes won, ties broken by the sum of margins.

    Two classes keep their plain margin, which is finer than a vote.
    """
    margins = decisions.sum(axis=2)
    if decisions.shape[1] == 2:
        return margins
    return (decisions > 0).sum(axis=2) + margins / (3 * (np.abs(margins) + 1))
