"""Linear heads at the optimum of a convex objective: `logistic` and `linear-svm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import groupby
from typing import Any

import numpy as np

from ..core.errors import HeadError
from .base import ClassWeight, Head, LinearModel
from .folds import Fold, stratified_folds
from .groups import Groups
from .penalty_choice import choose_penalty
from .penalty_path import FoldPaths, walk
from .rows import SMALL, StreamedRows, one_thread
from .scaling import fit_scaler
from .scores import fit_temperature
from .solver import CROSS_ENTROPY, SQUARED_HINGE, LinearProblem, Loss, State


class SolvedHead(LinearModel):
    """Base of heads that `LinearProblem` solves; a sweep's penalties are solved along one path, see
    `penalty_path`.

    Attributes
    ----------
    coef_, intercept_ : (K, D) and (K,) float64 arrays
        For raw features, one row a class, also with two classes.
    C_ : float
        The inverse penalty used.
    choice_ : dict
        How it was chosen where `C` is 'auto', with the `penalties` tried and the `log_loss` of each, see
        `choose_penalty`.
    n_iter_ : int
        Iterations taken.
    converged_ : bool
        Whether the optimum was reached.
    """

    loss: Loss
    squares = threads = True
    calibrated: bool  # whether scores need a temperature from left-out rows

    def __init__(self, C: float | str = "auto", scaling: str = "none", class_weight: ClassWeight = None,
                 max_iter: int = 3000, seed: int = 0, groups: Groups | None = None):
        self.groups = groups
        self.C = C
        self.scaling = scaling
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.seed = seed

    @property
    def random(self) -> bool:
        """Whether another seed gives another head: by the folds on which a penalty, or a temperature, is found."""
        return self.calibrated or not _is_penalty(self.C)

    def paths(self, settings: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return groups of settings that differ in `C` alone."""
        return [[position for position, _ in group] for _, group in
                groupby(enumerate(settings), key=lambda pair: _without_penalty(pair[1]))]

    def fit_path(self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
        """Yield this head fitted with each of the settings in turn, see `Head.fit_path`.

        Neighbouring settings that differ in a number `C` alone share a path.
        """
        if isinstance(X, StreamedRows) or not all(_is_penalty(one.get("C")) for one in settings):
            yield from super().fit_path(X, y, settings)
            return
        for rest, group in groupby(settings, key=_without_penalty):
            yield from self._path(X, y, rest, [float(one["C"]) for one in group])

    def _path(self, X: Any, y: Any, rest: Mapping[str, Any], Cs: list[float]) -> Iterator[Head]:
        ascending, found = sorted(Cs), dict[float, _Fitted]()
        with one_thread(X):  # once: finding the libraries to limit takes longer than solving for a penalty
            head = self.unfitted(**rest)
            X, codes = head._checked_training(X, y)
            head.scaler_ = head._fitted_scaler(X)
            solved = zip(ascending, _Work(head, head._scaled(X), codes).path(ascending, self.max_iter), strict=True)
            for at, C in enumerate(Cs):
                while C not in found:
                    found.update([next(solved)])
                yield copy(head).set_params(C=C)._take(C, *(found[C] if C in Cs[at + 1 :] else found.pop(C)))

    def fits_folds_together(self, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold],
                            settings: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether `fit_folds` takes these: rows so many that walking over them is what takes the time."""
        scalings = {one.get("scaling", self.scaling) for one in settings}
        rows = len(y) * (X.shape[1] if X.ndim == 3 else 1)
        return (not self.calibrated and scalings <= {"none", "standardize", "l2"} and rows * X.shape[-1] > SMALL
                and rows >= X.shape[-1] and all(_is_penalty(one.get("C")) for one in settings)
                and all(len(np.unique(y[train])) == len(np.unique(y)) for train, _ in folds))

    def fit_folds(
        self, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold], settings: Sequence[Mapping[str, Any]],
        wanted: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int, int, Head]]:  # fmt: skip
        """Yield this head fitted on the folds, see `Head.fit_folds`; their penalties are walked side by side."""
        heads, weights, scalers = [], [], []
        for train, _ in folds:
            head = self.unfitted(**_without_penalty(settings[0]))
            own, codes = head._checked_training(X[train], y[train])
            factors = head._factors(own.shape[1])
            inner = fit_scaler(head.scaling, own if factors is None else head._multiplied(own, factors))
            head.scaler_ = inner if factors is None else inner.after(factors)
            heads.append(head)
            scalers.append(inner)
            weights.append(np.zeros(len(y) * head.views_))
            weights[-1].reshape(len(y), -1)[train] = (head._class_weights(codes)[codes] / head.views_).reshape(
                len(train), -1)
        whole, codes = self.unfitted()._checked_training(X, y)
        if (factors := self._factors(whole.shape[1])) is not None:
            whole = self._multiplied(whole, factors)
        paths = FoldPaths(whole, codes, np.stack(weights), scalers, len(heads[0].classes_), self.loss)
        order = [sorted(own, key=lambda position: settings[position]["C"]) for own in wanted]
        positions = [iter(own) for own in order]
        Cs = [[float(settings[position]["C"]) for position in own] for own in order]
        for fold, found in paths.walk(Cs, self.max_iter):
            position = next(positions[fold])
            head = copy(heads[fold]).set_params(**settings[position])
            C = float(settings[position]["C"])
            yield fold, position, head._take(C, found.coef, found.intercept, found.iterations, found.reached, 1.0)

    def _fit(self, Z: Any, codes: np.ndarray, validation: object) -> None:
        work, C, start = _Work(self, Z, codes), self.C, None
        if isinstance(C, str) and C == "auto":
            found, start = choose_penalty(Z, codes, work.weights, self.loss, views=self.views_, seed=self.seed,
                                          softened=self.calibrated)
            C = found.pop("C")
            if found["n"]:
                self.choice_ = {"settings": {"C": C}, "candidates": len(found["penalties"]), "metric": "log_loss",
                                "rule": "strongest", "on": "cv", **found}
                self.selection_ = "cv"
        elif not _is_penalty(C):
            raise HeadError(f"C is {C!r}; the inverse penalty must be a number above 0, or 'auto'.")
        self._take(float(C), *work.solve(float(C), self.max_iter, start))

    def _take(self, C: float, coef: np.ndarray, intercept: np.ndarray, iterations: int, reached: bool,
              temperature: float) -> SolvedHead:
        self.C_, self.n_iter_, self.converged_, self.temperature_ = C, iterations, reached, temperature
        self._keep(coef, intercept)
        return self


def _without_penalty(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "C"}


def _is_penalty(C: Any) -> bool:
    return not isinstance(C, str) and C is not None and C > 0 and np.isfinite(C)


_Fitted = tuple[np.ndarray, np.ndarray, int, bool, float]
"""Coefficients (K, D), intercepts (K,), iterations taken, whether the optimum was reached, temperature."""
_Solved = tuple[np.ndarray, np.ndarray, int, bool]
"""The same for one problem, without a temperature."""


class _Work:
    """The problems behind one head: that of all rows, and those of the folds for the temperature."""

    def __init__(self, head: SolvedHead, Z: Any, codes: np.ndarray):
        self.Z, self.codes, self.views = Z, codes, head.views_
        # so that C weighs an image, however many views it has
        self.weights = weights = head._class_weights(codes)[codes] / head.views_
        folds = stratified_folds(codes, head.seed, views=head.views_) if head.calibrated else []
        self.left_out = [test for _, test in folds]
        self.problems = [LinearProblem(Z, codes, weights, len(head.classes_), head.loss)]
        self.problems += [LinearProblem(Z[train], codes[train], weights[train], len(head.classes_), head.loss)
                          for train, _ in folds]

    def solve(self, C: float, max_iter: int, start: State | None) -> _Fitted:
        """Return the optimum for one penalty, looked for from `start`."""
        return self._fitted([problem.solve(C, start, max_iter) for problem in self.problems])

    def path(self, Cs: Sequence[float], max_iter: int) -> Iterator[_Fitted]:
        """Yield the optimum for each penalty, in ascending order of C."""
        walks = [walk(problem, Cs, max_iter) for problem in self.problems]
        for found in zip(*walks, strict=True):
            yield self._fitted([(one.coef, one.intercept, one.iterations, one.reached) for one in found])

    def _fitted(self, found: Sequence[_Solved]) -> _Fitted:
        """Return the first solution, of all rows, with the temperature that the others give."""
        coef, intercept, iterations, _ = found[0]
        reached = all(one[3] for one in found)
        if not (self.left_out and reached):
            return coef, intercept, iterations, reached, 1.0
        scores = np.empty((len(self.codes), len(intercept)))
        for (own, level, _, _), test in zip(found[1:], self.left_out, strict=True):
            scores[test] = self.Z[test] @ own.T + level
        # for plain images
        return coef, intercept, iterations, True, fit_temperature(scores[:: self.views], self.codes[:: self.views])


class LogisticHead(SolvedHead):
    """Softmax regression with an L2 penalty, solved to the optimum; same objective as scikit-learn's.

    Parameters
    ----------
    C : float or 'auto'
        Inverse strength of the penalty, on scaled features; 'auto' chooses it by out-of-fold log loss on the
        training rows, see `choose_penalty`.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    max_iter : int
        Iterations of L-BFGS at the most.
    seed : int
        Of the folds on which 'auto' chooses; the optimum itself is unique.
    groups : sequence of (int, float), optional
        Of features of several layers, see `pipeline.heads.groups`.
    """

    loss, calibrated, streams = CROSS_ENTROPY, False, True


class LinearSVMHead(SolvedHead):
    """Linear support vector machines with squared hinge loss, one class against the rest.

    Scores are margins; the temperature that turns them into probabilities is fitted on out-of-fold margins.

    Parameters
    ----------
    C : float or 'auto'
        Inverse strength of the penalty, on scaled features, as in scikit-learn's LinearSVC; 'auto' chooses it by
        out-of-fold log loss on the training rows, see `choose_penalty`.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    max_iter : int
        Iterations of L-BFGS at the most.
    seed : int
        Of the folds.
    groups : sequence of (int, float), optional
        Of features of several layers, see `pipeline.heads.groups`.
    """

    loss, calibrated = SQUARED_HINGE, True
