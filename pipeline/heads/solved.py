"""Linear heads at the optimum of a convex objective: `logistic` and `linear-svm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from .base import ClassWeight, Head, LinearModel
from .out_of_fold import stratified_folds
from .scaling import fit_scaler
from .solver import CROSS_ENTROPY, SQUARED_HINGE, LinearProblem, Loss, State, chosen_C
from .temperature import fit_temperature
from .threads import one_thread


class SolvedHead(LinearModel):
    """Base of heads that `LinearProblem` solves; a path of penalties shares its work and starts each from the last.

    Attributes
    ----------
    coef_, intercept_ : (K, D) and (K,) float64 arrays
        For raw features, one row a class, also with two classes.
    n_iter_ : int
        Iterations taken.
    """

    loss: Loss
    auto: float  # what C = 'auto' stands for, times the mean squared length of a row
    calibrated: bool  # whether scores need a temperature from left-out rows

    def __init__(self, C: float | str = "auto", scaling: str = "standardize", class_weight: ClassWeight = None,
                 max_iter: int = 3000, seed: int = 0):
        self.C = C
        self.scaling = scaling
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.seed = seed

    def fit_path(self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
        """Yield this head fitted with each of the settings in turn; see `Head.fit_path`."""
        if any(set(one) != {"C"} for one in settings):
            yield from super().fit_path(X, y, settings)
            return
        with one_thread(X):
            head = self.unfitted()
            X, codes = head._checked_training(X, y)
            head.scaler_ = fit_scaler(head.scaling, X)
            work = _Work(head, head._scaled(X), codes)
        for one in settings:
            with one_thread(X):
                yield copy(head).set_params(**one)._solve(work)

    def _fit(self, Z: Any, codes: np.ndarray, validation: object) -> None:
        self._solve(_Work(self, Z, codes))

    def _solve(self, work: _Work) -> SolvedHead:
        C = chosen_C(self.C, work.Z, self.auto)
        coef, intercept, self.n_iter_ = work.whole.solve(C, self.max_iter)
        self.temperature_ = work.temperature(C, self.max_iter)
        self._keep(coef, intercept)
        return self


class _Work:
    """The problems behind one head: that of all rows, and those of the folds for the temperature."""

    def __init__(self, head: SolvedHead, Z: Any, codes: np.ndarray):
        self.Z, self.codes, self.views = Z, codes, head.views_
        weights = head._class_weights(codes)[codes] / head.views_  # so that C weighs an image, however many views
        folds = stratified_folds(codes, head.seed, views=head.views_) if head.calibrated else []
        self.whole = _Solved(LinearProblem(Z, codes, weights, len(head.classes_), head.loss))
        self.parts = [
            (_Solved(LinearProblem(Z[train], codes[train], weights[train], len(head.classes_), head.loss)), test)
            for train, test in folds
        ]

    def temperature(self, C: float, max_iter: int) -> float:
        if not self.parts:
            return 1.0
        left_out = np.empty((len(self.codes), self.whole.problem.n_classes))
        for part, test in self.parts:
            coef, intercept, _ = part.solve(C, max_iter)
            left_out[test] = self.Z[test] @ coef.T + intercept
        return fit_temperature(left_out[:: self.views], self.codes[:: self.views])  # for plain images


class _Solved:
    """A problem that starts from where it ended last."""

    def __init__(self, problem: LinearProblem):
        self.problem = problem
        self.last: State | None = None

    def solve(self, C: float, max_iter: int) -> tuple[np.ndarray, np.ndarray, int]:
        coef, intercept, iterations = self.problem.solve(C, self.last, max_iter)
        self.last = coef, intercept
        return coef, intercept, iterations


class LogisticHead(SolvedHead):
    """Softmax regression with an L2 penalty, solved to the optimum; same objective as scikit-learn's.

    Parameters
    ----------
    C : float or 'auto'
        Inverse strength of the penalty, on scaled features; 'auto' is 10 divided by the mean squared length of a
        row (10 / D for standardized features): a compromise between few images and many, see `--sweep`.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    max_iter : int
        Iterations of L-BFGS at the most.
    seed : int
        Has no effect: the optimum is unique.
    """

    loss, auto, calibrated, streams = CROSS_ENTROPY, 10.0, False, True


class LinearSVMHead(SolvedHead):
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
    """

    loss, auto, calibrated = SQUARED_HINGE, 0.1, True
