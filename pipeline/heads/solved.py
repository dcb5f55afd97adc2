"""Linear heads at the optimum of a convex objective: `logistic` and `linear-svm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from .base import ClassWeight, Head, LinearModel
from .lockstep import Lockstep
from .losses import CROSS_ENTROPY, SQUARED_HINGE, Loss
from .out_of_fold import stratified_folds
from .rows import StreamedRows
from .scaling import fit_scaler
from .solver import LinearProblem, chosen_C
from .temperature import fit_temperature
from .threads import one_thread

Fitted = tuple[np.ndarray, np.ndarray, int, float]
"""Coefficients (K, D), intercepts (K,), iterations taken, temperature."""


class SolvedHead(LinearModel):
    """Base of heads that `LinearProblem` solves; a sweep's penalties are solved together, by `Lockstep`.

    Attributes
    ----------
    coef_, intercept_ : (K, D) and (K,) float64 arrays
        For raw features, one row a class, also with two classes.
    n_iter_ : int
        Iterations taken.
    """

    loss: Loss
    auto: float  # what C = 'auto' stands for, times the mean squared length of a row
    squares = threads = True
    calibrated: bool  # whether scores need a temperature from left-out rows

    def __init__(self, C: float | str = "auto", scaling: str = "standardize", class_weight: ClassWeight = None,
                 max_iter: int = 3000, seed: int = 0):
        self.C = C
        self.scaling = scaling
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.seed = seed

    def fit_path(self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
        """Yield this head fitted with each of the settings in turn, see `Head.fit_path`; penalties in lockstep."""
        together = all(set(one) == {"C"} and not isinstance(one["C"], str) and one["C"] > 0 for one in settings)
        if not together or isinstance(X, StreamedRows):
            yield from super().fit_path(X, y, settings)
            return
        with one_thread(X):
            head = self.unfitted()
            X, codes = head._checked_training(X, y)
            head.scaler_ = fit_scaler(head.scaling, X)
            work = _Work(head, head._scaled(X), codes)
        found = work.path([float(one["C"]) for one in settings], self.max_iter)
        for one in settings:
            with one_thread(X):
                yield copy(head).set_params(**one)._take(*next(found))

    def _fit(self, Z: Any, codes: np.ndarray, validation: object) -> None:
        self._take(*_Work(self, Z, codes).solve(chosen_C(self.C, Z, self.auto), self.max_iter))

    def _take(self, coef: np.ndarray, intercept: np.ndarray, iterations: int, temperature: float) -> SolvedHead:
        self.n_iter_, self.temperature_ = iterations, temperature
        self._keep(coef, intercept)
        return self


class _Work:
    """The problems behind one head: that of all rows, and those of the folds for the temperature."""

    def __init__(self, head: SolvedHead, Z: Any, codes: np.ndarray):
        self.Z, self.codes, self.views = Z, codes, head.views_
        weights = head._class_weights(codes)[codes] / head.views_  # so that C weighs an image, however many views
        folds = stratified_folds(codes, head.seed, views=head.views_) if head.calibrated else []
        self.left_out = [test for _, test in folds]
        self.problems = [LinearProblem(Z, codes, weights, len(head.classes_), head.loss)]
        self.problems += [LinearProblem(Z[train], codes[train], weights[train], len(head.classes_), head.loss)
                          for train, _ in folds]

    def solve(self, C: float, max_iter: int) -> Fitted:
        """Return the optimum for one penalty."""
        return self._fitted([problem.solve(C, max_iter=max_iter) for problem in self.problems])

    def path(self, Cs: Sequence[float], max_iter: int) -> Iterator[Fitted]:
        """Yield what is near the optimum for each penalty, see `lockstep`."""
        paths = [Lockstep(problem).path(Cs, max_iter) for problem in self.problems]
        for found in zip(*paths, strict=True):
            yield self._fitted([(one.coef, one.intercept, one.iterations) for one in found])

    def _fitted(self, found: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> Fitted:
        """Return the first solution, of all rows, with the temperature that the others give."""
        if not self.left_out:
            return *found[0], 1.0
        scores = np.empty((len(self.codes), len(found[0][1])))
        for (coef, intercept, _), test in zip(found[1:], self.left_out, strict=True):
            scores[test] = self.Z[test] @ coef.T + intercept
        return *found[0], fit_temperature(scores[:: self.views], self.codes[:: self.views])  # for plain images


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
