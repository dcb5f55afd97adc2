"""The `ridge` head: least squares on class indicators, every penalty and leave-one-out from one decomposition."""

from __future__ import annotations

import numpy as np

from .base import ClassWeight, LinearModel
from .errors import HeadError
from .temperature import fit_temperature

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-2, 7.01, 0.5))


class RidgeHead(LinearModel):
    """Ridge regression on targets 1 (own class) and -1 (others); its penalty chosen by leaving each row out.

    Parameters
    ----------
    alpha : float, sequence of float, or 'loo'
        Penalty as in scikit-learn's Ridge, on scaled features. Of several the one with the smallest
        leave-one-out squared error is taken; 'loo' chooses from 19 log steps, 0.01 to 1e7.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the squared error.

    Attributes
    ----------
    alpha_ : float
        The penalty used.
    alphas_, loo_errors_, loo_accuracies_ : (A,) float64 arrays
        The path: every penalty tried, its leave-one-out squared error and accuracy.
    """

    def __init__(self, alpha: float | str | tuple[float, ...] = "loo", scaling: str = "standardize",
                 class_weight: ClassWeight = None):
        self.alpha = alpha
        self.scaling = scaling
        self.class_weight = class_weight

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        self.alphas_ = self._alphas()
        weights = self._class_weights(codes)[codes]
        problem = RidgeProblem(Z, indicators(codes, len(self.classes_)), weights)
        path = [problem.left_out(alpha) for alpha in self.alphas_]
        self.loo_errors_ = np.array([(weights @ np.square(problem.T - left).sum(axis=1)) for left in path])
        self.loo_errors_ /= weights.sum()
        self.loo_accuracies_ = np.array([(left.argmax(axis=1) == codes).mean() for left in path])
        best = int(self.loo_errors_.argmin())
        self.alpha_ = float(self.alphas_[best])
        self.temperature_ = fit_temperature(path[best], codes)
        self._keep(*problem.solve(self.alpha_))

    def _alphas(self) -> np.ndarray:
        if isinstance(self.alpha, str) and self.alpha != "loo":
            raise HeadError(f"alpha is {self.alpha!r}; it must be a number, several, or 'loo'.")
        alphas = np.atleast_1d(np.asarray(ALPHAS if isinstance(self.alpha, str) else self.alpha, np.float64))
        if alphas.ndim != 1 or not len(alphas) or not (alphas > 0).all():
            raise HeadError(f"alpha is {self.alpha!r}; penalties must be above 0.")
        return alphas


def indicators(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the (N, K) float64 targets: 1 in the column of a row's class, -1 elsewhere."""
    targets = np.full((len(codes), n_classes), -1.0)
    targets[np.arange(len(codes)), codes] = 1
    return targets


class RidgeProblem:
    """Weighted ridge regression with free intercepts, solved for any penalty from one eigendecomposition.

    Parameters
    ----------
    Z : (N, D) array
        Scaled features.
    T : (N, K) array
        Targets.
    weights : (N,) array
        Of the rows.
    """

    def __init__(self, Z: np.ndarray, T: np.ndarray, weights: np.ndarray):
        self.T, self.weights = T, weights
        self.center, self.level = np.average(Z, axis=0, weights=weights), np.average(T, axis=0, weights=weights)
        root = np.sqrt(weights)[:, None]
        centered = (Z - self.center) * root
        residual = (T - self.level) * root
        if len(Z) < Z.shape[1]:
            values, self.U = np.linalg.eigh(centered @ centered.T)
            self.values = np.maximum(values, 0)
            self.axes = centered.T @ self.U  # (D, N), to be divided by the values
            self.rotated = self.U.T @ residual
            self.dual = True
        else:
            values, vectors = np.linalg.eigh(centered.T @ centered)
            self.values = np.maximum(values, 0)
            self.U = centered @ vectors  # (N, D), of lengths sqrt(values)
            self.axes = vectors
            self.rotated = self.U.T @ residual
            self.dual = False
        self.root = root

    def solve(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the (K, D) coefficients and (K,) intercepts for the penalty `alpha`."""
        coef = (self.axes @ (self.rotated / (self.values + alpha)[:, None])).T
        return coef, self.level - coef @ self.center

    def left_out(self, alpha: float) -> np.ndarray:
        """Return the (N, K) predictions for each row by the model fitted on all others, exactly."""
        shrunk = (self.values if self.dual else 1) / (self.values + alpha)
        fitted = self.U @ (self.rotated * shrunk[:, None])
        # the hat matrix's diagonal: ridge's part and the intercept's
        lever = np.square(self.U) @ shrunk + self.weights / self.weights.sum()
        residual = (self.T - self.level) * self.root - fitted
        return self.T - residual / self.root / np.maximum(1 - lever, 1e-12)[:, None]
