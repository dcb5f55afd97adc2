"""The `svm-rbf` head: scikit-learn's kernel machine, kept as plain arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import HeadError
from .base import ClassWeight, Head
from .folds import out_of_fold_scores
from .scaling import chunks
from .scores import fit_temperature

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

    _distances: dict[str, np.ndarray]  # of the training rows by scaling, while several fits share them

    def __init__(self, C: float = 10.0, gamma: str | float = "scale", gamma_factor: float = 1.0,
                 scaling: str = "none", class_weight: ClassWeight = None, seed: int = 0):
        self.C = C
        self.gamma = gamma
        self.gamma_factor = gamma_factor
        self.scaling = scaling
        self.class_weight = class_weight
        self.seed = seed

    def fit_path(self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
        """Yield this head fitted with each of the settings in turn, see `Head.fit_path`; distances are shared."""
        shared: dict[str, np.ndarray] = {}
        for one in settings:
            head = self.unfitted(**one)
            head._distances = shared
            yield head.fit(X, y)

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        self.gamma_ = self._gamma(Z)
        kernel = self._whole_kernel(Z)
        left_out = out_of_fold_scores(
            lambda train, test: self._left_out(Z, kernel, codes, train, test), codes, self.seed, self.views_
        )
        self._learn(Z, kernel, codes)
        self.temperature_ = 1.0
        if left_out is not None:
            self.temperature_ = fit_temperature(left_out[:: self.views_], codes[:: self.views_])  # for plain images

    def _whole_kernel(self, Z: np.ndarray) -> np.ndarray | None:
        """Return the (N, N) kernel of the training rows, None where it would be too large.

        Matrix products make it many times faster than the solver makes its rows one by one, and folds are parts of it.
        """
        shared = vars(self).pop("_distances", {})
        if len(Z) > WHOLE_KERNEL:
            return None
        if self.scaling not in shared:
            shared[self.scaling] = squared_distances(Z, Z)
        return self._kernel(shared[self.scaling])

    def _left_out(self, Z: np.ndarray, kernel: np.ndarray | None, codes: np.ndarray, train: np.ndarray,
                  test: np.ndarray) -> np.ndarray:
        if kernel is None:
            self._learn(Z[train], None, codes[train])
            return self._scores(Z[test])
        support = train[self._learn(Z[train], kernel[np.ix_(train, train)], codes[train])]
        return np.concatenate([self._decided(rows) for rows in chunks(kernel[np.ix_(test, support)], self._block())])

    def _gamma(self, Z: np.ndarray) -> float:
        if not self.gamma_factor > 0:
            raise HeadError(f"gamma_factor is {self.gamma_factor!r}; it must be above 0.")
        if self.gamma == "scale":
            return float(self.gamma_factor / (Z.shape[1] * (Z.var(dtype=np.float64) or 1.0)))
        if isinstance(self.gamma, str) or not self.gamma > 0:
            raise HeadError(f"gamma is {self.gamma!r}; it must be 'scale' or a number above 0.")
        return float(self.gamma_factor * self.gamma)

    def _learn(self, Z: np.ndarray, kernel: np.ndarray | None, codes: np.ndarray) -> np.ndarray:
        """Solve for rows (N, D) and their (N, N) kernel; return which rows are the support vectors."""
        from sklearn.svm import SVC

        model = SVC(C=self.C, kernel="rbf" if kernel is None else "precomputed", gamma=self.gamma_,
                    class_weight=self._code_weights(codes), cache_size=500)
        model.fit(Z if kernel is None else kernel, codes)
        self.support_ = Z[model.support_]
        self.support_counts_ = np.asarray(model.n_support_, np.int64)
        # with two classes scikit-learn shows the signs turned round
        sign = -1 if len(self.classes_) == 2 else 1
        self.dual_coef_, self.intercept_ = sign * model.dual_coef_, sign * model.intercept_
        return model.support_

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        return np.concatenate([self._decided(self._kernel(squared_distances(rows, self.support_)))
                               for rows in chunks(Z, self._block())])

    def _kernel(self, distances: np.ndarray) -> np.ndarray:
        """Return exp(-gamma |a - b|²) of squared distances."""
        found = -self.gamma_ * distances
        return np.exp(found, out=found)

    def _block(self) -> int:
        """Return how many rows are scored at a time."""
        return max(1, BLOCK_VALUES // max(len(self.classes_) ** 2, len(self.support_)))

    def _decided(self, kernel: np.ndarray) -> np.ndarray:
        """Return (N, K) scores from the (N, S) kernel of rows and support vectors."""
        return one_against_rest(self._pairs(kernel))

    def _pairs(self, kernel: np.ndarray) -> np.ndarray:
        """Return the (N, K, K) antisymmetric decisions: above 0 at [i, j] is a vote for class i against j."""
        n, stops = len(self.classes_), np.cumsum(self.support_counts_)
        parts = np.zeros((len(kernel), n, n))
        for own, (start, stop) in enumerate(zip(stops - self.support_counts_, stops, strict=True)):
            others = np.delete(np.arange(n), own)
            parts[:, own, others] = kernel[:, start:stop] @ self.dual_coef_[:, start:stop].T
        i, j = np.triu_indices(n, 1)
        decisions = np.zeros_like(parts)
        decisions[:, i, j] = parts[:, i, j] + parts[:, j, i] + self.intercept_
        decisions[:, j, i] = -decisions[:, i, j]
        return decisions


def squared_distances(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return |a - b|² of (N, D) and (M, D) rows: (N, M) float64."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    found = A @ B.T
    found *= -2
    found += np.square(A).sum(axis=1)[:, None]
    found += np.square(B).sum(axis=1)
    return np.maximum(found, 0, out=found)


def one_against_rest(decisions: np.ndarray) -> np.ndarray:
    """Turn (N, K, K) pairwise decisions into (N, K) scores: votes won, ties broken by the sum of margins.

    Two classes keep their plain margin, which is finer than a vote.
    """
    margins = decisions.sum(axis=2)
    if decisions.shape[1] == 2:
        return margins
    return (decisions > 0).sum(axis=2) + margins / (3 * (np.abs(margins) + 1))
