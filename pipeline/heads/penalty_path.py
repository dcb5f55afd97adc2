"""One linear classifier for many penalties, each solved to its own optimum; many rows, all folds at once.

The optimum moves smoothly with the logarithm of the penalty. So penalties are walked from the strongest to the
weakest on a fixed ladder, each starting where the last two point to, and with the curvature that L-BFGS has learned
on the way: some three passes over the rows a penalty instead of forty from zero. All happens in the coordinates of
the Gram matrix's eigenvectors; there the preconditioner of `solver` is a number a coordinate. Where to begin and how
far to step does not depend on what is asked for, so neither does what is found, but for the tolerance.

A product of rows with ten columns takes nearly the time of one with fifty, because it waits for memory. Five folds
share four fifths of their rows, so each pass over all rows serves every fold: a fold leaves out its own by weight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rows import map_rows, sum_rows
from .scaling import Scaler, fit_scaler
from .solver import ROUNDING, LinearProblem, Loss, Minimum, Pair, minimizing, penalty_factor

# squared preconditioned gradient, relative to the objective and to what it gained over zero: on 10,000 rows log loss
# is then known to 0.4 %; of few rows, which are computed in float64, each decides more, and precision costs little
TOLERANCE = {np.dtype(np.float32): 2e-3, np.dtype(np.float64): 1e-6}
ALLOWED = 3000  # iterations, where nobody says how many; see MOST
MEMORY = 6  # pairs of steps that L-BFGS keeps
STEP = 10**0.25  # the ladder's
# iterations for one penalty: the usual three say that it is far from reached; of few rows they cost next to nothing
MOST = {np.dtype(np.float32): 100, np.dtype(np.float64): 1000}
BEND_ROWS = 500  # on which the curvature is measured
LARGE = 512  # coordinates from which scipy's eigenvectors are worth the time of its import

Values = tuple[float, np.ndarray]
"""The mean loss at a place, and its derivatives there."""


@dataclass(frozen=True)
class Solution:
    """What was found for one penalty.

    Attributes
    ----------
    coef, intercept : (K, D) and (K,) float64 arrays
    iterations : int
    reached : bool
        Whether it is the optimum, to tolerance.
    """

    coef: np.ndarray
    intercept: np.ndarray
    iterations: int
    reached: bool


@dataclass(frozen=True)
class Stop:
    """That a path has come to a penalty which was asked for; see `Solution`."""

    iterations: int
    reached: bool


class PenaltyPath:
    """The way from penalty to penalty for one training set.

    Parameters
    ----------
    squares : (D,) array
        Eigenvalues of the Gram matrix.
    n_classes : int
    penalty : callable
        From C to the factor of half the squared coefficients, see `LinearProblem.penalty`.
    bend : callable
        From a place, (K, D + 1) with the intercepts last, to the loss's mean second derivative there.
    max_iter : int
        Iterations for one penalty at the most.
    tolerance : float, optional
        See `TOLERANCE`.
    step : float
        Ratio of neighbouring penalties on the ladder.

    Attributes
    ----------
    place : (K, D + 1) array
        The last solution.
    """

    def __init__(self, squares: np.ndarray, n_classes: int, penalty: Callable[[float], float],
                 bend: Callable[[np.ndarray], float], max_iter: int = ALLOWED, tolerance: float | None = None,
                 step: float = STEP):
        self.dtype = squares.dtype
        self.penalty, self.bend, self.max_iter, self.step = penalty, bend, min(max_iter, MOST[self.dtype]), step
        self.tolerance = TOLERANCE[self.dtype] if tolerance is None else tolerance
        self.place = np.zeros((n_classes, len(squares) + 1), self.dtype)
        self.squares = np.append(np.maximum(squares, 0), self.dtype.type(1))  # the intercept's coordinate is the last
        self._C = 0.0  # the last penalty
        self._change = np.zeros_like(self.place)  # of the place, as log C changes
        self._pairs: deque[Pair] = deque(maxlen=MEMORY)
        self._worst = np.inf  # the loss of zeros, once it is known
        length = max(float(squares.sum()), np.finfo(self.dtype).tiny)
        # there the penalty bends the objective a tenth as much as the loss does along all axes together
        self._first = 10 * penalty(1.0) / (bend(self.place) * length)

    def steps(self, Cs: Sequence[float]) -> Generator[np.ndarray | Stop, Values | None, None]:
        """Walk to each inverse penalty, given in ascending order.

        Yields places where the loss is asked for and takes its values there; yields a `Stop` at each penalty, when
        `place` is its solution. Once an optimum was not reached, no weaker penalty is tried: they are further away.
        """
        reached = True
        for C in Cs:
            iterations = 0
            for rung in self._rungs(C):
                if not reached:
                    break
                found = yield from self._solving(rung)
                iterations, reached = iterations + found.iterations, found.reached
            yield Stop(iterations, reached)

    def _rungs(self, C: float) -> Iterator[float]:
        """Yield what is to be solved on the way from the last penalty to C, which is the last."""
        if not self._C:
            yield min(C, self._first)
        while self._C < C:
            yield C if self._C * self.step > C * 0.99 else self._C * self.step

    def _solving(self, C: float) -> Generator[np.ndarray, Any, Minimum]:
        """Solve for one penalty, a rung further on."""
        free = np.append(np.ones(len(self.squares) - 1, self.dtype), self.dtype.type(0))  # intercepts are not shrunk
        decay = self.dtype.type(self.penalty(C)) * free
        ahead, more = 0.0, decay
        if self._C:
            ahead, more = np.log(C / self._C), decay - self.dtype.type(self.penalty(self._C)) * free
        else:
            self._worst = (yield self.place)[0]
        start = self.place + self.dtype.type(ahead) * self._change
        bends = np.maximum(self.bend(start) * self.squares + decay, np.finfo(self.dtype).tiny)
        found = yield from _shrunk(decay, minimizing(
            start, tolerance=self.tolerance, max_iter=self.max_iter, memory=MEMORY, rounding=ROUNDING[self.dtype],
            inverse=(1 / bends).astype(self.dtype), worst=self._worst,
            pairs=deque(((way, change + more * way) for way, change in self._pairs), maxlen=MEMORY),
        ))  # fmt: skip
        if ahead:
            self._change = (found.place - self.place) / self.dtype.type(ahead)
        self._C, self.place, self._pairs = C, found.place, found.pairs
        return found


def _shrunk(decay: np.ndarray, asked: Generator[np.ndarray, Values, Minimum]) -> Generator[np.ndarray, Values, Minimum]:
    """Add the penalty to what others compute of the loss."""
    try:
        W = next(asked)
        while True:
            loss, slope = yield W
            shrunk = decay * W
            W = asked.send((loss + float(np.vdot(shrunk, W)) / 2, slope + shrunk))
    except StopIteration as end:
        return end.value


def walk(problem: LinearProblem, Cs: Sequence[float], max_iter: int = ALLOWED, tolerance: float | None = None,
         step: float = STEP) -> Iterator[Solution]:
    """Yield a solution for each inverse penalty, given in ascending order.

    Once a penalty's optimum was not reached, no weaker one is tried: they are further away.

    Parameters
    ----------
    problem : LinearProblem
        Of an array, not of streamed rows.
    Cs : sequence of float
    max_iter, tolerance, step
        See `PenaltyPath`.
    """
    squares, axes = eigenvectors(problem.gram.astype(problem.dtype))
    turned = problem.turned(axes)
    path = PenaltyPath(squares, problem.n_classes, problem.penalty, lambda W: _bend(turned, W), max_iter, tolerance,
                       step)
    steps = path.steps(Cs)
    for asked in steps:
        while not isinstance(asked, Stop):
            asked = steps.send(_slope(turned, asked))
        W = path.place.astype(np.float64)
        yield Solution(*turned.outward(W[:, :-1], W[:, -1]), asked.iterations, asked.reached)


def eigenvectors(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix."""
    if len(gram) < LARGE:
        return np.linalg.eigh(gram)
    from scipy.linalg import eigh

    return eigh(gram, driver="evd", check_finite=False)


def _bend(problem: LinearProblem, W: np.ndarray) -> float:
    some = slice(None, None, max(1, len(problem.codes) // BEND_ROWS))
    assert isinstance(problem.Z, np.ndarray)
    scores = (problem.Z[some] @ W[:, :-1].T).astype(np.float64) + W[:, -1]
    return mean_bend(problem.loss, scores, problem.codes[some], problem.weights[some])


def mean_bend(loss: Loss, scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean second derivative of a loss at (N, K) scores; never nothing, so that it can divide."""
    return max(float(loss.bend(scores, codes) @ weights / weights.sum()), 1e-12)


def _slope(problem: LinearProblem, W: np.ndarray) -> tuple[float, np.ndarray]:
    loss, inner, free = problem.slope(W[:, :-1], W[:, -1])
    return loss, np.column_stack([inner, free]).astype(W.dtype)


class FoldPaths:
    """Rows that the training sets of several folds share.

    Parameters
    ----------
    X : (N, D) array
        Raw features.
    codes : (N,) int array
        Classes 0 to K - 1; every fold trains on all of them.
    weights : (F, N) array
        Of the rows in each fold's training, 0 for those left out.
    scalers : sequence of Scaler
        Each fold's own; of kind none, standardize or l2.
    n_classes : int
        K.
    loss : Loss
    """

    def __init__(self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, scalers: Sequence[Scaler],
                 n_classes: int, loss: Loss):
        self.codes, self.n_classes, self.loss = codes, n_classes, loss
        self.totals = weights.sum(axis=1)
        self.weights = np.ascontiguousarray((weights / self.totals[:, None]).T)  # (N, F), of sum 1
        common = fit_scaler(scalers[0].kind, X)
        Z = common(X)
        self.mean = sum_rows(lambda rows: rows.sum(axis=0, dtype=np.float64), Z) / len(Z)
        self.Z = Z - self.mean.astype(Z.dtype)
        self.factors, self.shifts = _between(common, scalers, X.shape[1])
        gram = sum_rows(lambda rows: rows.T @ rows, self.Z).astype(np.float64) / len(Z)
        self.squares, self.axes = eigenvectors(gram.astype(self.Z.dtype))

    def walk(self, Cs: Sequence[Sequence[float]], max_iter: int = ALLOWED) -> Iterator[tuple[int, Solution]]:
        """Yield (fold, solution) for each fold's inverse penalties, each fold's in the ascending order given."""
        paths = {fold: self._path(fold, max_iter) for fold, own in enumerate(Cs) if len(own)}
        steps = {fold: path.steps(Cs[fold]) for fold, path in paths.items()}
        asked = {fold: next(own) for fold, own in steps.items()}
        while asked:
            for fold in list(asked):
                while isinstance(stop := asked[fold], Stop):
                    yield fold, self._outward(fold, paths[fold].place, stop)
                    if (following := next(steps[fold], None)) is None:
                        del asked[fold]
                        break
                    asked[fold] = following
            if asked:
                places = [place for place in asked.values() if isinstance(place, np.ndarray)]
                values = self._slopes(list(asked), np.stack(places))
                asked = {fold: steps[fold].send(own) for fold, own in zip(asked, values, strict=True)}

    def _path(self, fold: int, max_iter: int) -> PenaltyPath:
        total = float(self.totals[fold])
        return PenaltyPath(self.squares, self.n_classes,
                           lambda C: penalty_factor(self.loss, self.n_classes, C * total),
                           lambda W: self._bend(fold, W), max_iter)

    def _inward(self, folds: Sequence[int], W: np.ndarray) -> np.ndarray:
        """Return coefficients (A, K, D) for the shared rows, of those in the paths' coordinates."""
        flat = W[:, :, :-1].reshape(-1, len(self.axes)) @ self.axes.T  # one product: several would be slower
        return flat.reshape(len(W), self.n_classes, -1) * self.factors[folds][:, None]

    def _outward(self, fold: int, place: np.ndarray, stop: Stop) -> Solution:
        coef = (place[:, :-1] @ self.axes.T).astype(np.float64)
        intercept = place[:, -1] - coef @ (self.factors[fold] * self.mean + self.shifts[fold])
        return Solution(coef, intercept, stop.iterations, stop.reached)

    def _bend(self, fold: int, W: np.ndarray) -> float:
        rows = np.flatnonzero(self.weights[:, fold])
        rows = rows[:: max(1, len(rows) // BEND_ROWS)]
        scores = (self.Z[rows] @ self._inward([fold], W[None])[0].T).astype(np.float64) + W[:, -1]
        return mean_bend(self.loss, scores, self.codes[rows], self.weights[rows, fold])

    def _slopes(self, folds: list[int], W: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Return the mean loss and its derivatives at W (A, K, D + 1) for each of A folds; one walk over the rows."""
        flat = np.ascontiguousarray(self._inward(folds, W).reshape(-1, self.Z.shape[1]))
        free = W[:, :, -1:].astype(np.float64)

        def piece(Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            scores = np.ascontiguousarray((Z @ flat.T).T).reshape(*free.shape[:2], len(Z)) + free
            losses = np.array([self.loss.slope(own[None], codes, weights[:, fold])[0]
                               for own, fold in zip(scores, folds, strict=True)])
            across = scores.astype(Z.dtype)  # the loss has put its derivative there
            return losses, across.reshape(len(flat), -1) @ Z, scores.sum(axis=2)

        parts = list(map_rows(piece, self.Z, self.codes, self.weights))
        losses, inner, steepness = (sum(part[which] for part in parts) for which in range(3))
        inner = inner.reshape(len(folds), self.n_classes, -1) * self.factors[folds][:, None]
        inner = (inner.reshape(len(flat), -1) @ self.axes).reshape(inner.shape)
        slopes = np.concatenate([inner, steepness[:, :, None]], axis=2).astype(W.dtype)
        return list(zip(losses.tolist(), slopes, strict=True))


def _between(common: Scaler, scalers: Sequence[Scaler], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each fold's (F, D) factors and shifts that turn commonly scaled rows into its own."""
    if common.center is None or common.scale is None:
        return np.ones((len(scalers), width), np.float32), np.zeros((len(scalers), width))
    scales = np.stack([own.scale for own in scalers if own.scale is not None])
    shifts = (common.center - np.stack([own.center for own in scalers if own.center is not None])) * scales
    return (scales / common.scale).astype(np.float32), shifts
