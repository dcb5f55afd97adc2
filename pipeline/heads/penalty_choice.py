"""Choosing a linear head's penalty on its training rows alone.

No constant serves: a few hundred photos of things that ImageNet knows want an inverse penalty C a thousand times that
of ten thousand small, strange images. So a short path of penalties is solved on some folds of the rows, and scored
by log loss on the rest. Of penalties that the rows left out cannot tell apart the strongest is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .folds import fold_numbers
from .penalty_path import Solution, walk
from .rows import SMALL, StreamedRows, cores, sum_rows
from .scores import fit_temperature
from .solver import LinearProblem, Loss, State

FOLDS = 5
LEFT_OUT = 1000  # images; with so many left out already, further folds are not solved
SAMPLE_VALUES = 30_000_000  # of more rows than these hold, a sample is chosen on
STEP = 10**0.5
# C times the mean squared length of a row: from a penalty beside which nothing is learned to one that hardly counts
LADDER = tuple(10 ** (half / 2) for half in range(-4, 13))
LEAST = 9  # penalties tried: before one of a row's own size, a loss that rises may well fall again
# C times the mean squared length where no row can be left out: what ten images a class were best with
UNCHOSEN = 1000.0
TOLERANCE = 1e-3  # of the path: a tenth of a percent of the log loss
NEAR = 1.0  # standard errors of the difference to the best within which a penalty counts as good

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Rows (N, D), codes (N,) and weights (N,)."""


def choose_penalty(
    Z: np.ndarray | StreamedRows, codes: np.ndarray, weights: np.ndarray, loss: Loss, *, views: int = 1, seed: int = 0,
    softened: bool = False,
) -> tuple[dict[str, Any], State | None]:  # fmt: skip
    """Return the inverse penalty to use and why, and a solution near to that of all rows.

    Parameters
    ----------
    Z : (N, D) array or StreamedRows
        Scaled training rows.
    codes : (N,) int array
        Their classes.
    weights : (N,) array
        Of the rows, in training and in scoring.
    loss : Loss
    views : int
        Neighbouring rows of one image; images are left out as a whole and scored on the first.
    seed : int
        Of the folds.
    softened : bool
        Whether scores are divided by the temperature that suits them best before they are scored.

    Returns
    -------
    dict
        `C`; the `penalties` tried, in ascending C, and the `log_loss` of each on images left out; `folds` solved,
        and `n`, the images left out. Where no image could be, or nothing be solved, `n` is 0.
    State or None
        Of one fold; None where rows were fewer than features, for then a solution costs little.
    """
    length = _mean_squared_length(Z)
    rows = _sample(codes, Z.shape[1], views, seed)
    own = np.unique(codes[rows], return_inverse=True)[1]
    numbers = np.repeat(fold_numbers(own[::views], FOLDS, seed), views)
    used = _folds_to_solve(numbers[::views])
    unchosen = {"C": UNCHOSEN / length, "penalties": [], "log_loss": [], "folds": 0, "n": 0}, None
    if not used:
        return unchosen
    taken = Z.at(rows) if isinstance(Z, StreamedRows) else Z if len(rows) == len(codes) else Z[rows]
    in_span = len(taken) < taken.shape[1]
    if in_span:  # their own span has fewer coordinates, and no score changes in it
        taken = np.asarray(np.linalg.qr((taken - taken.mean(axis=0)).T, mode="r")).T
    found = _LeftOut((np.ascontiguousarray(taken), own, weights[rows]), numbers, used, loss, views, softened)
    Cs = [rung / length for rung in LADDER]
    losses, means = found.losses(Cs)
    if not means:  # not even the strongest penalty could be solved for
        return unchosen
    best = int(np.argmin(means))
    place = next(i for i in range(best + 1) if _near(losses[i], losses[best], found.weights))
    near = None
    if not in_span and found.n_classes > codes.max():  # of all features, and all classes
        near = found.solved[place].coef, found.solved[place].intercept
    return {"C": Cs[place], "penalties": Cs[: len(means)], "log_loss": means, "folds": len(used),
            "n": len(found.weights)}, near


def _mean_squared_length(Z: np.ndarray | StreamedRows) -> float:
    """Return it for rows around their mean."""
    count = len(Z)
    center = sum_rows(lambda rows: rows.sum(axis=0, dtype=np.float64), Z) / count
    squares = float(sum_rows(lambda rows: np.square(rows - center.astype(rows.dtype)).sum(dtype=np.float64), Z))
    return max(squares / count, np.finfo(np.float64).tiny)


def _sample(codes: np.ndarray, width: int, views: int, seed: int) -> np.ndarray:
    """Return the rows to choose on, ascending: all, or as many whole images as `SAMPLE_VALUES` holds."""
    images, most = len(codes) // views, max(2, SAMPLE_VALUES // (width * views))
    if images <= most:
        return np.arange(len(codes))
    order = np.random.default_rng(seed).permutation(images)
    order = order[np.argsort(codes[::views][order], kind="stable")]  # by class, so that each keeps its share
    chosen = np.sort(order[:: -(-images // most)])
    return (chosen[:, None] * views + np.arange(views)).ravel()


def _folds_to_solve(numbers: np.ndarray) -> list[int]:
    """Return the first folds that leave out `LEFT_OUT` images together, or all that leave out any."""
    found, together = [], 0
    for fold in range(FOLDS):
        own = int((numbers == fold).sum())
        if own and together < LEFT_OUT:
            found.append(fold)
            together += own
    return found


def _near(losses: np.ndarray, best: np.ndarray, weights: np.ndarray) -> bool:
    """Tell whether losses (N,) are within `NEAR` standard errors of the best's, on the same images."""
    apart = losses - best
    mean = float(np.average(apart, weights=weights))
    error = np.sqrt(np.average(np.square(apart - mean), weights=weights) / len(apart))
    return mean <= NEAR * error


class _LeftOut:
    """Paths on the images of some folds, scored on the images left out; `solved` are those of the first fold."""

    def __init__(self, problem: Problem, numbers: np.ndarray, used: list[int], loss: Loss, views: int,
                 softened: bool):
        self.Z, self.codes, weights = problem
        self.numbers, self.used, self.loss, self.softened = numbers, used, loss, softened
        self.solved = list[Solution]()
        self.row_weights, self.n_classes = weights, int(self.codes.max()) + 1
        first = np.arange(len(numbers)) % views == 0
        self.tests = [np.flatnonzero((numbers == fold) & first) for fold in used]
        self.weights = np.concatenate([weights[test] for test in self.tests])

    def losses(self, Cs: list[float]) -> tuple[list[np.ndarray], list[float]]:
        """Return the (N,) log losses of images left out, for each C until it is clear that weaker ones are worse, and
        their weighted means."""
        side_by_side = len(self.used) if self.Z.size > SMALL // 20 else 1
        own = np.concatenate([self.codes[test] for test in self.tests])
        found: list[np.ndarray] = []
        means: list[float] = []
        with ThreadPoolExecutor(min(side_by_side, cores())) as pool:
            paths = list(pool.map(lambda fold: self._path(fold, Cs), self.used))
            for _ in Cs:
                solved = list(pool.map(next, paths))
                if not all(one.reached for one in solved):
                    break
                self.solved.append(solved[0])
                found.append(self._log_losses(solved, own))
                means.append(float(np.average(found[-1], weights=self.weights)))
                best = int(np.argmin(means))
                worse = not any(_near(one, found[best], self.weights) for one in found[-2:])
                if worse and len(means) >= max(LEAST, best + 3):
                    break
        return found, means

    def _path(self, fold: int, Cs: list[float]) -> Iterator[Solution]:
        train = self.numbers != fold
        problem = LinearProblem(self.Z[train], self.codes[train], self.row_weights[train], self.n_classes, self.loss,
                                roughly=True)
        return walk(problem, Cs, tolerance=TOLERANCE, step=STEP)

    def _log_losses(self, solved: list[Solution], codes: np.ndarray) -> np.ndarray:
        scores = np.concatenate([self.Z[test] @ one.coef.T.astype(self.Z.dtype) + one.intercept
                                 for one, test in zip(solved, self.tests, strict=True)])
        if self.softened:
            scores /= fit_temperature(scores, codes)
        scores -= scores.max(axis=1, keepdims=True)
        return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(codes)), codes]
