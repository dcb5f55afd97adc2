"""Linear classifiers solved to their optimum, with numpy and scipy alone.

L-BFGS on cached features needs about a hundred passes, because features are correlated. Here it walks in
coordinates in which the features are not: W = V L^-1 with L L^T = a Z^T Z / N + l2 I, an upper bound's shape of the
Hessian (Böhning, "Multinomial logistic regression algorithm", 1992). That takes a quarter of the passes; the Gram
matrix Z^T Z costs as much as a few of them. Rows fewer than features are first rotated into their own span, which
loses nothing: the optimum lies in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from .base import softmax
from .errors import HeadError

GRADIENT_TOLERANCE = 1e-6  # of the largest entry of the preconditioned gradient, relative to the one at the start


Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, np.ndarray]]
"""From scores (N, K), codes (N,) and weights (N,) to the weighted loss and its slope (N, K)."""


def cross_entropy(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Return softmax regression's loss and slope."""
    slope = softmax(scores)
    rows = np.arange(len(slope))
    loss = -np.log(np.maximum(slope[rows, codes], np.finfo(slope.dtype).tiny)) @ weights
    slope[rows, codes] -= 1
    slope *= weights[:, None]
    return float(loss), slope


def squared_hinge(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the loss and slope of one support vector machine a class, each against the rest."""
    sign = np.full_like(scores, -1)
    sign[np.arange(len(codes)), codes] = 1
    short = np.maximum(1 - sign * scores, 0)
    loss = np.square(short).sum(axis=1) @ weights
    return float(loss), -2 * sign * short * weights[:, None]


def chosen_C(C: float | str, Z: np.ndarray, auto: float) -> float:
    """Return the number that a setting `C` stands for; 'auto' is `auto` over the rows' mean squared length."""
    if C == "auto":
        return auto * len(Z) / max(float(np.square(Z, dtype=np.float64).sum()), np.finfo(np.float64).tiny)
    if isinstance(C, str) or not C > 0:
        raise HeadError(f"C is {C!r}; the inverse penalty must be a number above 0, or 'auto'.")
    return float(C)


class LinearProblem:
    """One training set on which a linear classifier is solved for one or more penalties.

    The objective is scikit-learn's, divided by C times the sum of weights:
    ``mean(weights * loss) + ||W||² / (2 C sum(weights))``; intercepts are free.

    Parameters
    ----------
    Z : (N, D) float32 or float64 array
        Scaled features.
    codes : (N,) int array
        Classes 0 to K - 1.
    weights : (N,) array
        Weight of each row.
    n_classes : int
        K.
    loss : Loss
        `cross_entropy` or `squared_hinge`. With two classes `cross_entropy` penalises the difference of the two
        rows of W, as binary logistic regression does.
    """

    def __init__(self, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray, n_classes: int,
                 loss: Loss = cross_entropy):
        self.loss = loss
        # the mean second derivative of the loss at the start, whatever the class
        self.curvature = (1 - 1 / n_classes) / n_classes if loss is cross_entropy else 1.0
        self.doubled = 2 if loss is cross_entropy and n_classes == 2 else 1
        self.total = float(weights.sum())
        self.weights = (weights / self.total).astype(Z.dtype)
        self.center = self.weights @ Z
        centered = Z - self.center
        self.basis = None
        if len(Z) < Z.shape[1]:
            self.basis, triangle = np.linalg.qr(centered.T)
            centered = np.ascontiguousarray(triangle.T)
        self.Z, self.codes, self.n_classes = centered, codes, n_classes
        self.gram = ((centered * self.weights[:, None]).T @ centered).astype(np.float64)

    def solve(self, C: float, start: tuple[np.ndarray, np.ndarray] | None = None,
              max_iter: int = 1000) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the optimal (K, D) coefficients, the (K,) intercepts and the number of iterations.

        Parameters
        ----------
        C : float
            Inverse strength of the penalty, as in scikit-learn.
        start : tuple of (K, D) and (K,) arrays, optional
            Where to begin, such as the optimum for a neighbouring C.
        max_iter : int
            Iterations at the most.
        """
        penalty = self.doubled / (C * self.total)
        factor = self._factor(penalty)
        first = self._packed(start, factor)
        scale = np.abs(self._objective(np.zeros_like(first), factor, penalty)[1]).max()
        found = minimize(
            self._objective, first, (factor, penalty), jac=True, method="L-BFGS-B",
            options={"maxiter": max_iter, "maxcor": 20, "gtol": GRADIENT_TOLERANCE * scale, "ftol": 0, "maxls": 50},
        )
        W, intercept = self._unpacked(found.x, factor)
        coef = W if self.basis is None else W @ self.basis.T
        return coef, intercept - coef @ self.center, found.nit

    def _factor(self, penalty: float) -> np.ndarray:
        bound = self.curvature * self.gram
        bound[np.diag_indices_from(bound)] += penalty
        return cholesky(bound, lower=True, overwrite_a=True, check_finite=False)

    def _packed(self, start: tuple[np.ndarray, np.ndarray] | None, factor: np.ndarray) -> np.ndarray:
        V = np.zeros((self.n_classes, len(factor) + 1))
        if start is not None:
            coef, intercept = start
            V[:, -1] = intercept + coef @ self.center
            V[:, :-1] = (coef if self.basis is None else coef @ self.basis) @ factor
        return V.ravel()

    def _unpacked(self, flat: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        V = flat.reshape(self.n_classes, -1)
        W = solve_triangular(factor, V[:, :-1].T, lower=True, trans="T", check_finite=False).T
        return W, V[:, -1]

    def _objective(self, flat: np.ndarray, factor: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        W, intercept = self._unpacked(flat, factor)
        scores = self.Z @ W.T.astype(self.Z.dtype) + intercept.astype(self.Z.dtype)
        loss, P = self.loss(scores, self.codes, self.weights)
        # (P^T Z) is written so that the long side of Z is walked once, in order
        slope = (P.T @ self.Z).astype(np.float64) + penalty * W
        gradient = np.empty((self.n_classes, len(factor) + 1))
        gradient[:, :-1] = solve_triangular(factor, slope.T, lower=True, check_finite=False).T
        gradient[:, -1] = P.sum(axis=0)
        return loss + penalty / 2 * float(np.vdot(W, W)), gradient.ravel()
