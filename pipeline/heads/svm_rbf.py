"""The `svm-rbf` head: scikit-learn's kernel machine, kept as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ClassWeight, Head
from .out_of_fold import out_of_fold_scores
from .scaling import chunks
from .temperature import fit_temperature

BLOCK_VALUES = 4_000_000  # pairwise decisions held at a time


class SVMRBFHead(Head):
    """A support vector machine with a Gaussian kernel; temperature fitted on out-of-fold margins.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty.
    gamma : 'scale' or float
        Of the kernel exp(-gamma |x - y|²); 'scale' is 1 / (D x variance).
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

    def __init__(self, C: float = 10.0, gamma: str | float = "scale", scaling: str = "standardize",
                 class_weight: ClassWeight = None, seed: int = 0):
        self.C = C
        self.gamma = gamma
        self.scaling = scaling
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        left_out = out_of_fold_scores(lambda train, test: self._left_out(Z, codes, train, test), codes, self.seed)
        self._keep(self._fitted(Z, codes))
        self.temperature_ = 1.0 if left_out is None else fit_temperature(left_out, codes)

    def _left_out(self, Z: np.ndarray, codes: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        self._keep(self._fitted(Z[train], codes[train]))
        return self._scores(Z[test])

    def _fitted(self, Z: np.ndarray, codes: np.ndarray) -> Any:
        from sklearn.svm import SVC

        return SVC(C=self.C, gamma=self.gamma, class_weight=self._code_weights(codes), cache_size=500).fit(Z, codes)

    def _keep(self, model: Any) -> None:
        self.support_ = np.asarray(model.support_vectors_)
        self.support_counts_ = np.asarray(model.n_support_, np.int64)
        # with two classes scikit-learn shows the signs turned round
        sign = -1 if len(self.classes_) == 2 else 1
        self.dual_coef_, self.intercept_ = sign * model.dual_coef_, sign * model.intercept_
        self.gamma_ = float(model._gamma)

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        block = max(1, BLOCK_VALUES // max(len(self.classes_) ** 2, len(self.support_)))
        return np.concatenate([one_against_rest(self._pairs(part)) for part in chunks(Z, block)])

    def _pairs(self, Z: np.ndarray) -> np.ndarray:
        """Return the (N, K, K) antisymmetric decisions: above 0 at [i, j] is a vote for class i against j."""
        Z = Z.astype(np.float64)
        support = self.support_.astype(np.float64)
        distance = np.square(Z).sum(axis=1)[:, None] + np.square(support).sum(axis=1) - 2 * Z @ support.T
        kernel = np.exp(-self.gamma_ * np.maximum(distance, 0))
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


def one_against_rest(decisions: np.ndarray) -> np.ndarray:
    """Turn (N, K, K) pairwise decisions into (N, K) scores: votes won, ties broken by the sum of margins.

    Two classes keep their plain margin, which is finer than a vote.
    """
    margins = decisions.sum(axis=2)
    if decisions.shape[1] == 2:
        return margins
    return (decisions > 0).sum(axis=2) + margins / (3 * (np.abs(margins) + 1))
