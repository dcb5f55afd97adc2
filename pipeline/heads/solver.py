"""Linear classifiers solved to their optimum with numpy alone: their losses with derivatives, and L-BFGS.

L-BFGS on cached features needs about a hundred passes, because features are correlated. Here it walks in coordinates
in which they are not: W = V L^-1 with L L^T = a Z^T Z / N + l2 I, the shape of an upper bound of the Hessian
(Böhning, "Multinomial logistic regression algorithm", 1992). That takes a quarter of the passes; the Gram matrix Z^T
Z costs as much as a few of them. As predictions become certain, the loss bends less and `a` falls: it is measured
again on the way, for otherwise a weak penalty takes thousands of passes. Rows fewer than features are first rotated
into their own span, which loses nothing: the optimum lies in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .rows import SMALL, StreamedRows, map_rows, sum_rows

SHORTEST = 1e-3  # step below which rounding alone decides

Pair = tuple[np.ndarray, np.ndarray]
"""A step, and how much the gradient changed along it."""

LEAST = -60.0  # exp of less, times a weight, would be a denormal float32, with which processors are far slower
STAGE = 8  # iterations after which the curvature is measured again
CHANGED = 5  # times what it was: then a new preconditioner pays
# squared preconditioned gradient, relative to the objective; rounding of float32 features makes some 3e-9 of it
TOLERANCE = {np.dtype(np.float32): 2e-8, np.dtype(np.float64): 1e-10}
ROUNDING = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}  # of the objective
MEMORY = 20  # pairs of steps that L-BFGS keeps
# OpenBLAS multiplies what takes fewer steps than these without copying it first: in half the time, for 10 classes
MANY = 100  # classes, from which on each makes a walk over the rows longer
FEW_STEPS, LEAST_ROWS = 1_000_000, 64

State = tuple[np.ndarray, np.ndarray]
"""Coefficients (K, D) and intercepts (K,)."""


@dataclass
class Minimum:
    """Where L-BFGS ended.

    Attributes
    ----------
    place : array
    value : float
    iterations : int
        Steps taken or tried.
    reached : bool
        Whether the gradient became small enough; False after `max_iter`, or where rounding left no way down.
    pairs : deque of Pair
        The last steps, with which a similar function's minimization may begin.
    """

    place: np.ndarray
    value: float
    iterations: int
    reached: bool
    pairs: deque[Pair] = field(repr=False)


def minimize(values: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, **how: Any) -> Minimum:
    """Minimize a convex function, from places to values and gradients; see `minimizing`."""
    walk = minimizing(start, **how)
    try:
        place = next(walk)
        while True:
            place = walk.send(values(place))
    except StopIteration as end:
        return end.value


def minimizing(
    start: np.ndarray, *, tolerance: float, max_iter: int, memory: int, rounding: float,
    inverse: np.ndarray | None = None, worst: float = np.inf, pairs: deque[Pair] | None = None,
) -> Generator[np.ndarray, tuple[float, np.ndarray], Minimum]:  # fmt: skip
    """Minimize a convex function whose values are above 0, and which somebody else computes.

    Yields places and takes the value and the gradient there, so that several functions can be computed together.

    Parameters
    ----------
    start : array
    tolerance : float
        The minimum is reached when the squared gradient, in the metric of `inverse`, is at most this share of the
        value, and of what was gained over `worst`. It is about twice what there still is to gain.
    max_iter : int
    memory : int
        Pairs that are kept.
    rounding : float
        What share of a value may be rounding error, and so does not count as going uphill.
    inverse : array, optional
        Diagonal estimate of the inverse second derivatives, of the shape of `start`; by default ones.
    worst : float
        The value from which gains are counted.
    pairs : deque of Pair, optional
        Of a similar function, to begin with.
    """
    x = start
    f, g = yield x
    scale = np.ones_like(x) if inverse is None else inverse
    pairs = deque(pairs or (), maxlen=memory)
    length, iterations = 1.0, 0
    direction = _downhill(g, pairs, scale)
    while _dot(g, scale * g) > tolerance * max(min(f, worst - f), 0.0):
        if iterations == max_iter or length <= SHORTEST:
            return Minimum(x, f, iterations, False, pairs)
        iterations += 1
        step = length * direction
        new_f, new_g = yield x + step
        if not new_f <= f + 1e-4 * _dot(step, g) + rounding * f:
            length *= 0.4
            continue
        change = new_g - g
        if _dot(step, change) > 1e-7 * np.sqrt(_dot(change, change) * _dot(step, step)):
            pairs.append((step, change))
        x, f, g, length = x + step, new_f, new_g, 1.0
        direction = _downhill(g, pairs, scale)
    return Minimum(x, f, iterations, True, pairs)


def _downhill(g: np.ndarray, pairs: deque[Pair], inverse: np.ndarray) -> np.ndarray:
    """Return the direction that L-BFGS takes from a gradient: the two loops of Nocedal, "Updating quasi-Newton
    matrices with limited storage", 1980."""
    way, shares = -g, []
    for step, change in reversed(pairs):
        share = _dot(step, way) / _dot(step, change)
        way -= way.dtype.type(share) * change
        shares.append(share)
    factor = 1.0
    if pairs:
        step, change = pairs[-1]
        factor = _dot(step, change) / _dot(change, inverse * change)
    way *= way.dtype.type(factor) * inverse
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        back = share - _dot(change, way) / _dot(step, change)
        way += way.dtype.type(back) * step
    return way


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))


@dataclass(frozen=True)
class Loss:
    """A convex loss of scores.

    Attributes
    ----------
    slope : callable
        For several solutions at once, in the precision of the scores: from scores (A, K, N), which it overwrites with
        the derivative of the weighted loss, codes (N,) and weights (N,) to the losses (A,).
    bend : callable
        From scores (N, K) and codes (N,) to the (N,) mean second derivative over the classes.
    doubled : bool
        Whether with two classes the penalty counts twice: then it is that of the difference of the two rows of W,
        as in binary logistic regression.
    """

    slope: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    bend: Callable[[np.ndarray, np.ndarray], np.ndarray]
    doubled: bool = False


def _softmax_bend(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return (shares * (1 - shares)).mean(axis=1)


def _softmax_slope(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = np.arange(len(codes))
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[:, codes, rows]
    np.exp(np.maximum(scores, LEAST, out=scores), out=scores)
    total = scores.sum(axis=1)
    scores *= (weights / total)[:, None]
    scores[:, codes, rows] -= weights
    return ((np.log(total) - own) * weights).sum(axis=1, dtype=np.float64)


def _hinge_slope(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = np.arange(len(codes))
    scores[:, codes, rows] *= -1
    scores += 1  # the shortfall, where above 0
    np.maximum(scores, 0, out=scores)
    loss = np.einsum("akn,akn,n->a", scores, scores, weights)
    scores *= 2 * weights
    scores[:, codes, rows] *= -1
    return loss


def _hinge_bend(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return 2 * (_shortfall(scores, codes)[0] > 0).mean(axis=1)


def _shortfall(scores: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sign = np.full_like(scores, -1)
    sign[np.arange(len(codes)), codes] = 1
    return np.maximum(1 - sign * scores, 0), sign


CROSS_ENTROPY = Loss(_softmax_slope, _softmax_bend, doubled=True)
SQUARED_HINGE = Loss(_hinge_slope, _hinge_bend)


class LinearProblem:
    """One training set on which a linear classifier is solved for one or more penalties.

    The objective is scikit-learn's, divided by C times the sum of weights:
    ``mean(weights * loss) + ||W||² / (2 C sum(weights))``; intercepts are free.

    Parameters
    ----------
    Z : (N, D) float32 or float64 array, or StreamedRows
        Scaled features.
    codes : (N,) int array
        Classes 0 to K - 1.
    weights : (N,) array
        Weight of each row.
    n_classes : int
        K.
    loss : Loss
        `CROSS_ENTROPY` or `SQUARED_HINGE`.
    roughly : bool
        Compute few rows as many: in float32, as they are. Enough to choose among penalties.
    """

    def __init__(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, weights: np.ndarray, n_classes: int,
                 loss: Loss = CROSS_ENTROPY, roughly: bool = False):
        self.loss, self.codes, self.n_classes = loss, codes, n_classes
        self.total = float(weights.sum())
        self.weights = np.asarray(weights, np.float64) / self.total
        self.center = sum_rows(lambda rows, own: own @ rows, Z, self.weights)
        self.basis: np.ndarray | None = None
        self.Z: np.ndarray | StreamedRows
        if isinstance(Z, StreamedRows):
            self.Z, self.dtype = Z.map(lambda rows: rows - self.center.astype(rows.dtype)), np.dtype(np.float32)
        else:
            centered = Z - self.center.astype(Z.dtype)
            self.Z = centered.astype(np.float32, copy=False) if roughly else self._inner(centered)
            self.dtype = self.Z.dtype
        self.gram = sum_rows(_gram, self.Z, self.weights).astype(np.float64)

    def solve(self, C: float, start: State | None = None,
              max_iter: int = 3000) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """Return the optimal (K, D) coefficients, the (K,) intercepts, the iterations, and whether these sufficed.

        Parameters
        ----------
        C : float
            Inverse strength of the penalty, as in scikit-learn.
        start : State, optional
            Where to begin, such as the optimum for a neighbouring C.
        max_iter : int
            Iterations at the most.
        """
        penalty = self.penalty(C)
        W, free = self._inward(start)
        bend = self.bend(W, free)
        walk = _Walk(self, penalty, bend)
        W, free, iterations, done = walk.run(W, free, min(STAGE, max_iter))
        if not done and iterations < max_iter:
            now = self.bend(W, free)
            if not bend / CHANGED <= now <= bend * CHANGED:
                walk = _Walk(self, penalty, now)
            W, free, taken, done = walk.run(W, free, max_iter - iterations)
            iterations += taken
        return *self.outward(W, free), iterations, done

    def turned(self, axes: np.ndarray) -> LinearProblem:
        """Return the same problem in other coordinates of its inner rows, the orthonormal columns of (D, D) `axes`."""
        assert isinstance(self.Z, np.ndarray)
        found = copy(self)
        found.Z = np.concatenate(list(map_rows(lambda rows: rows @ axes, self.Z)))
        found.basis = axes.astype(np.float64) if self.basis is None else self.basis @ axes
        del found.gram
        return found

    def penalty(self, C: float) -> float:
        """Return the factor of half the squared coefficients."""
        return penalty_factor(self.loss, self.n_classes, C * self.total)

    def slope(self, W: np.ndarray, free: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Return the mean loss of the inner, centered rows and its derivatives, (K, D) and (K,); one walk over them."""
        own = W.astype(self.dtype)

        def piece(Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            blocks, rest = _blocks(Z, len(own))
            whole, scores = len(Z) - len(rest), np.empty((len(own), len(Z)))
            scores[:, :whole] = (blocks @ own.T).reshape(whole, -1).T
            scores[:, whole:] = (rest @ own.T).T
            scores += free[:, None]
            loss = self.loss.slope(scores[None], codes, weights)[0]
            across = scores.astype(Z.dtype)  # the loss has put its derivative there
            inner = (across[:, :whole].reshape(-1, *blocks.shape[:2]).swapaxes(0, 1) @ blocks).sum(axis=0)
            inner += across[:, whole:] @ rest
            return loss, inner, scores.sum(axis=1)

        loss, inner, steepness = 0.0, np.zeros_like(W), np.zeros_like(free)
        for part in map_rows(piece, self.Z, self.codes, self.weights):
            loss += part[0]
            inner += part[1]
            steepness += part[2]
        return loss, inner, steepness

    def _inner(self, centered: np.ndarray) -> np.ndarray:
        """Return the rows to compute with: in their own span if that is smaller; few and of few classes in float64."""
        if len(centered) < centered.shape[1]:
            self.basis, triangle = np.linalg.qr(centered.T)
            centered = np.ascontiguousarray(triangle.T)
        little = centered.size * max(1.0, self.n_classes / MANY) <= SMALL
        return centered.astype(np.float64) if little else centered

    def bend(self, W: np.ndarray, free: np.ndarray) -> float:
        """Return the mean second derivative of the loss at inner coefficients and intercepts."""
        own, bend = W.T.astype(self.dtype), self.loss.bend

        def piece(Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> float:
            return bend((Z @ own).astype(np.float64) + free, codes) @ weights

        return float(sum_rows(piece, self.Z, self.codes, self.weights))

    def _inward(self, start: State | None) -> State:
        if start is None:
            return np.zeros((self.n_classes, len(self.gram))), np.zeros(self.n_classes)
        coef, intercept = start
        return (coef if self.basis is None else coef @ self.basis), intercept + coef @ self.center

    def outward(self, W: np.ndarray, free: np.ndarray) -> State:
        """Return coefficients and intercepts for rows as they were given, of those for inner rows."""
        coef = W if self.basis is None else W @ self.basis.T
        return coef, free - coef @ self.center


def penalty_factor(loss: Loss, n_classes: int, strength: float) -> float:
    """Return the factor of half the squared coefficients, for the inverse penalty times the sum of weights."""
    return (2 if loss.doubled and n_classes == 2 else 1) / strength


def _blocks(Z: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows into blocks whose products with a matrix of so many columns are quick, and a rest.

    One product of all blocks asks for the interpreter's lock once, which the other threads want too.
    """
    rows = FEW_STEPS // (Z.shape[1] * n_classes)
    count = -(-len(Z) // rows) if rows >= LEAST_ROWS else 1
    whole = len(Z) // count * count
    return Z[:whole].reshape(count, -1, Z.shape[1]), Z[whole:]


def _gram(Z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rooted = Z * np.sqrt(weights)[:, None].astype(Z.dtype)
    return rooted.T @ rooted  # of the same array: half the work


def _inverse(lower: np.ndarray) -> np.ndarray:
    """Return the inverse of a lower triangular matrix, a sixth of the work of a general one's, by halves."""
    size = len(lower)
    if size <= 64:
        return np.linalg.inv(lower)
    half, found = size // 2, np.zeros_like(lower)
    found[:half, :half], found[half:, half:] = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    found[half:, :half] = -found[half:, half:] @ (lower[half:, :half] @ found[:half, :half])
    return found


class _Walk:
    """L-BFGS in the coordinates of one preconditioner."""

    def __init__(self, problem: LinearProblem, penalty: float, bend: float):
        self.problem, self.penalty = problem, penalty
        bound = bend * problem.gram
        bound[np.diag_indices_from(bound)] += penalty
        self.factor = np.linalg.cholesky(bound)
        self.inverse = _inverse(self.factor)
        self.root = np.sqrt(max(bend, np.finfo(np.float64).tiny))  # the same for the intercepts

    def run(self, W: np.ndarray, free: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, int, bool]:
        """Return where at most `most` iterations lead, how many were taken, and whether there is no way further."""
        start, dtype = np.column_stack([W @ self.factor, self.root * free]), self.problem.dtype
        found = minimize(self._values, start, tolerance=TOLERANCE[dtype], max_iter=most, memory=MEMORY,
                         rounding=ROUNDING[dtype])
        return *self._unpacked(found.place), found.iterations, found.iterations < most

    def _unpacked(self, V: np.ndarray) -> State:
        return V[:, :-1] @ self.inverse, V[:, -1] / self.root

    def _values(self, V: np.ndarray) -> tuple[float, np.ndarray]:
        problem, (W, free) = self.problem, self._unpacked(V)
        loss, inner, free_slope = problem.slope(W, free)
        inner += self.penalty * W
        gradient = np.column_stack([inner @ self.inverse.T, free_slope / self.root])
        return loss + self.penalty / 2 * float(np.vdot(W, W)), gradient
