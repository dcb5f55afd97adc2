"""The `linear-svm` head: support vector machines one against the rest, solved to the optimum."""

from __future__ import annotations

import numpy as np

from .base import ClassWeight, LinearModel
from .out_of_fold import out_of_fold_scores
from .solver import SQUARED_HINGE, LinearProblem, chosen_C
from .temperature import fit_temperature

AUTO = 0.1


class LinearSVMHead(LinearModel):
    """Linear support vector machines with squared hinge loss, one class against the rest.

    Scores are margins; the temperature that turns them into probabilities is fitted on out-of-fold margins.

    Parameters
    ----------
    C : float or 'auto'
        Inverse strength of the penalty, on scaled features, as in scikit-learn's LinearSVC; 'auto' is 0.1 divided
        by the mean squared length of a row (0.1 / D for standardized features).
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    max_iter : int
        Iterations of L-BFGS at the most.
    seed : int
        Of the folds.

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
        coef, intercept, self.n_iter_ = self._solve(Z, codes, weights)

        def margins(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            own, free, _ = self._solve(Z[train], codes[train], weights[train])
            return Z[test] @ own.T + free

        left_out = out_of_fold_scores(margins, codes, self.seed)
        self.temperature_ = 1.0 if left_out is None else fit_temperature(left_out, codes)
        self._keep(coef, intercept)

    def _solve(self, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        problem = LinearProblem(Z, codes, weights, len(self.classes_), SQUARED_HINGE)
        return problem.solve(chosen_C(self.C, Z, AUTO), max_iter=self.max_iter)
