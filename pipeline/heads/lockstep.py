"""One linear classifier for many penalties at once, as near to the optimum as choosing among them needs.

A pass over the rows costs hardly more for twelve penalties than for three: a product with a few columns waits for
memory. So L-BFGS walks for a block of penalties in lockstep, all in coordinates of the Gram matrix's eigenvectors,
into which the rows are turned once; there each penalty's preconditioner (see `solver`) is a number a coordinate.
Every block starts from zero, so that what is found for a penalty does not depend on what was tried before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .lbfgs import minimize_together
from .solver import LinearProblem

# squared preconditioned gradient, relative to the objective and to what it gained over zero; of few rows, which are
# computed in float64, each decides more, and precision costs little
TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-5}
FITTED = 0.02  # mean loss below which a weaker penalty is not solved anew: it would do little but lengthen the weights
PENALTIES, COLUMNS = 12, 120  # in a block at the most; columns are penalties times classes
BLOCK_VALUES = 250_000  # scores held at a time, so that they stay in the cache
MEMORY = 8  # pairs of steps that L-BFGS keeps: of twelve penalties at once they are large
ROUNDING = 1e-6  # of the objective, in float32


class Solution(NamedTuple):
    """Coefficients (K, D), intercepts (K,), iterations taken, and the mean loss of the training rows."""

    coef: np.ndarray
    intercept: np.ndarray
    iterations: int
    loss: float


class Lockstep:
    """A training set in memory on which many penalties are solved for.

    Parameters
    ----------
    problem : LinearProblem
        Of an array, not of streamed rows.
    """

    def __init__(self, problem: LinearProblem):
        from scipy.linalg import eigh  # needed by sweeps alone; importing it takes longer than solving a small head

        self.problem = problem
        squares, self.axes = eigh(problem.gram.astype(problem.dtype), driver="evd", check_finite=False)
        self.Z = np.asarray(problem.Z) @ self.axes
        self.weights = problem.weights.astype(problem.dtype)
        zeros = np.zeros((problem.n_classes, len(squares))), np.zeros(problem.n_classes)
        bend = problem.bend(*zeros)
        self.bends = bend * np.append(np.maximum(squares, 0), 1)  # the intercept's coordinate is the last

    def path(self, Cs: Sequence[float], max_iter: int) -> Iterator[Solution]:
        """Yield a solution for each inverse penalty.

        Once one fits the training rows all but perfectly (`FITTED`), weaker penalties of later blocks get the same.
        """
        size = max(1, min(PENALTIES, COLUMNS // self.problem.n_classes))
        fitted: tuple[float, Solution] | None = None
        for start in range(0, len(Cs), size):
            block = Cs[start : start + size]
            open_ = [C for C in block if fitted is None or fitted[0] > C]
            solved = dict(zip(open_, self._block(open_, max_iter), strict=True))
            for C in block:
                solution = solved[C] if fitted is None or C in solved else fitted[1]
                if fitted is None and solution.loss < FITTED:
                    fitted = C, solution
                yield solution

    def _block(self, Cs: Sequence[float], max_iter: int) -> list[Solution]:
        if not Cs:
            return []
        problem, n_classes = self.problem, self.problem.n_classes
        penalties = np.array([problem.penalty(C) for C in Cs])[:, None]
        decay = np.column_stack([np.broadcast_to(penalties, (len(Cs), len(self.axes))), np.zeros(len(Cs))])
        roots = np.sqrt(np.maximum(self.bends + decay, np.finfo(problem.dtype).tiny)).astype(problem.dtype)
        losses = np.empty(len(Cs))

        def values(flat: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            root, shrunk = roots[which, None], decay[which, None].astype(problem.dtype)
            W = flat.reshape(len(which), n_classes, -1) / root
            losses[which], slope = self._slope(W)
            slope += shrunk * W
            return losses[which] + (shrunk * W * W).sum((1, 2)) / 2, (slope / root).reshape(flat.shape)

        start = np.zeros((len(Cs), n_classes * roots.shape[1]), problem.dtype)
        found, iterations = minimize_together(values, start, TOLERANCE[problem.dtype], max_iter, MEMORY, ROUNDING)
        W = (found.reshape(len(Cs), n_classes, -1) / roots[:, None]).astype(np.float64)
        return [Solution(*problem.outward(one[:, :-1] @ self.axes.T, one[:, -1]), int(taken), float(loss))
                for one, taken, loss in zip(W, iterations, losses, strict=True)]

    def _slope(self, W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean losses (A,) of solutions (A, K, D + 1) and their derivatives."""
        problem, (n, n_classes, width) = self.problem, W.shape
        flat = np.ascontiguousarray(W[:, :, :-1]).reshape(n * n_classes, width - 1)
        losses, slope = np.zeros(n), np.zeros((n * n_classes, width), W.dtype)
        step = max(64, BLOCK_VALUES // len(flat))
        for start in range(0, len(self.Z), step):
            Z, codes = self.Z[start : start + step], problem.codes[start : start + step]
            scores = (flat @ Z.T).reshape(n, n_classes, len(Z))
            scores += W[:, :, -1:]
            losses += problem.loss.slope(scores, codes, self.weights[start : start + step])
            scores = scores.reshape(len(flat), len(Z))
            slope[:, :-1] += scores @ Z
            slope[:, -1] += scores.sum(axis=1)
        return losses, slope.reshape(W.shape)
