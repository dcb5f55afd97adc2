"""The `logistic` head: softmax regression at its optimum."""

from __future__ import annotations

import numpy as np

from .base import ClassWeight, LinearModel
from .solver import LinearProblem, chosen_C

AUTO = 1.0


class LogisticHead(LinearModel):
    """Softmax regression with an L2 penalty, solved to the optimum; same objective as scikit-learn's.

    Parameters
    ----------
    C : float or 'auto'
        Inverse strength of the penalty, on scaled features; 'auto' is 1 divided by the mean squared length of a
        row (1 / D for standardized features).
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    max_iter : int
        Iterations of L-BFGS at the most.
    seed : int
        Has no effect: the optimum is unique.

    Attributes
    ----------
    coef_, intercept_ : (K, D) and (K,) float64 arrays
        For raw features, one row a class, also with two classes.
    n_iter_ : int
        Iterations taken.
    """

    def __init__(self, C: float | str = "auto", scaling: str = "standardize", class_weight: ClassWeight = None,
                 max_iter: int = 3000, seed: int = 0):
        self.C = C
        self.scaling = scaling
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.seed = seed

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        weights = self._class_weights(codes)[codes]
        problem = LinearProblem(Z, codes, weights, len(self.classes_))
        coef, intercept, self.n_iter_ = problem.solve(chosen_C(self.C, Z, AUTO), max_iter=self.max_iter)
        self._keep(coef, intercept)
