"""Accuracy against the number of training images: few-shot figures, a fitted curve, and what more labels would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import CacheError, PipelineError
from ..core.progress import Progress, silent
from ..evaluation.metrics import wilson_interval
from ..store import FeatureCache
from .fit import HELD_OUT, training_rows

DRAWS = 400  # of the bootstrap
SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


@dataclass(frozen=True)
class Point:
    """One head at one training size.

    Attributes
    ----------
    head : str
    shots : int or None
        Images of the largest class, where a number a class was asked for.
    n : int
        Training images.
    correct : (R, M) bool array
        For each of R random subsets, which of the M held-out images were named right.
    """

    head: str
    shots: int | None
    n: int
    correct: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """(R,) accuracy of each subset's head."""
        return self.correct.mean(axis=1)

    def interval(self, seed: int = 0) -> list[float]:
        """Return the 95 % interval of the mean accuracy: subsets and held-out images are drawn again together."""
        n_images = self.correct.shape[1]
        if self.correct.all():  # resampling knows nothing of errors
            return list(wilson_interval(n_images, n_images))
        rng = np.random.default_rng(seed)
        drawn = [_drawn_again(self.correct, rng.integers(n_images, size=(n_images,)), rng) for _ in range(DRAWS)]
        return np.quantile(drawn, [0.025, 0.975]).tolist()


@dataclass(frozen=True)
class Forecast:
    """A power law through one head's points, and where it leads.

    Attributes
    ----------
    head : str
    error, rate, floor : float
        Expected error after n images: ``floor + error * n ** -rate``.
    twice, low, high : float
        Expected accuracy with twice the training images, and its 95 % interval.
    """

    head: str
    error: float
    rate: float
    floor: float
    twice: float
    low: float
    high: float


def learning_curve(
    cache: FeatureCache, heads: Sequence[str], *, sizes: Sequence[int] | None = None,
    shots: Sequence[int] | None = None, repeats: int = 3, settings: Mapping[str, Any] | None = None, seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[Point], str]:  # fmt: skip
    """Train heads on random stratified subsets of the training images, and score each on the held-out split.

    Nothing is chosen on the held-out split: heads keep their last epoch.

    Parameters
    ----------
    cache : FeatureCache
    heads : sequence of str
    sizes : sequence of int, optional
        Training images; by default 5 % to all of them.
    shots : sequence of int, optional
        Images a class instead; a class that has fewer gives all of its own. Sizes, and shots, that come to the same
        images are one point, under their true number.
    repeats : int
        Subsets a size, the same for every head. Where the size takes all images, one.
    settings : mapping, optional
        Of the heads; each takes those that it has.
    seed : int

    Returns
    -------
    list of Point, str
        By head, then size; and the split that they were scored on.

    Raises
    ------
    CacheError
        If there is nothing to train or to score on.
    PipelineError
        If a size is not positive.
    """
    from joblib import Parallel, delayed

    X, y = training_rows(cache)
    split, X_test, y_test = _held_out(cache)
    wanted = [(shot, None) for shot in shots] if shots else [(None, size) for size in sizes or _usual_sizes(y)]
    if any((shot or size or 0) < 1 for shot, size in wanted) or repeats < 1:
        raise PipelineError("Sizes, shots and repeats must be 1 or more.")
    subsets = _subsets(y, wanted, repeats, seed)
    jobs = [(head, place, number) for head in heads for place in range(len(subsets))
            for number in range(len(subsets[place][1]))]
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    with progress(total=len(jobs), desc="Learning curve", unit="fit") as bar:
        parallel = Parallel(n_jobs=-1, return_as="generator")
        tasks = (delayed(_correct)(head, X, y, subsets[place][1][number], X_test, y_test, settings or {}, seed + number)
                 for head, place, number in jobs)
        for (head, place, _), correct in zip(jobs, parallel(tasks), strict=True):
            found.setdefault((head, place), []).append(correct)
            bar.update(1)
    return [Point(head, subsets[place][0], len(subsets[place][1][0]), np.stack(correct))
            for (head, place), correct in found.items()], split


def forecast(points: Sequence[Point], head: str, seed: int = 0) -> Forecast | None:
    """Fit a power law to one head's points [1]_ and ask it for twice the largest size.

    The interval comes from bootstrapping subsets and held-out images together.

    Returns
    -------
    Forecast or None
        None with fewer than three sizes.

    References
    ----------
    .. [1] Cortes et al., "Learning Curves: Asymptotic Values and Rate of Convergence", NIPS 1993.
    """
    own = [point for point in points if point.head == head]
    if len({point.n for point in own}) < 3:
        return None
    sizes = np.array([point.n for point in own], float)
    law = _fit_law(sizes, np.array([1 - point.correct.mean() for point in own]))
    rng, draws = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        images = rng.integers(own[0].correct.shape[1], size=own[0].correct.shape[1:])
        errors = [1 - _drawn_again(point.correct, images, rng) for point in own]
        draws.append(_at(_fit_law(sizes, np.array(errors)), 2 * sizes.max()))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Forecast(head, *law, 1 - _at(law, 2 * sizes.max()), 1 - high, 1 - low)


def _drawn_again(correct: np.ndarray, images: np.ndarray, rng: np.random.Generator) -> float:
    return float(correct[rng.integers(len(correct), size=len(correct))][:, images].mean())


def _at(law: tuple[float, float, float], n: float) -> float:
    error, rate, floor = law
    return float(np.clip(floor + error * n**-rate, 0, 1))


def _fit_law(sizes: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """Least squares over a grid of rates: for each, floor and factor are the solution of a small linear problem."""
    best = (np.inf, (0.0, 0.0, float(errors.mean())))
    for rate in np.linspace(0.05, 2, 40):
        powers = sizes**-rate
        for factor, floor in _lines(powers, errors):
            loss = float(np.square(floor + factor * powers - errors).sum())
            best = min(best, (loss, (factor, float(rate), floor)))
    return best[1]


def _lines(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Return candidates (slope, intercept) for y = slope x + intercept with neither below 0."""
    centered = x - x.mean()
    slope = max(0.0, float(centered @ (y - y.mean()) / (centered @ centered)))
    intercept = float(y.mean() - slope * x.mean())
    return [(slope, intercept)] if intercept >= 0 else [(max(0.0, float(x @ y / (x @ x))), 0.0)]


def _held_out(cache: FeatureCache) -> tuple[str, np.ndarray, np.ndarray]:
    for split in HELD_OUT:
        X, y = cache.split(split, view=0)
        if len(y):
            return split, X, y
    raise CacheError(f"{cache.path} has no labelled test or val images to score on. Extract with --val-fraction 0.2.")


def _usual_sizes(y: np.ndarray) -> list[int]:
    least = 2 * len(np.unique(y))
    return sorted({max(least, round(share * len(y))) for share in SHARES if share * len(y) >= least} | {len(y)})


def _subsets(
    y: np.ndarray, wanted: Sequence[tuple[int | None, int | None]], repeats: int, seed: int
) -> list[tuple[int | None, list[np.ndarray]]]:
    """Draw the training rows of each size and repeat; within a repeat a larger subset holds the smaller ones."""
    orders = [_shuffled_within_classes(y, np.random.default_rng([seed, number])) for number in range(repeats)]
    found: dict[int, tuple[int | None, list[np.ndarray]]] = {}  # by the number of images: then they are the same
    for shots, size in wanted:
        chosen = [_take(y, ranks, shots, size) for ranks in orders]
        true = None if shots is None else min(shots, int(np.bincount(y).max()))
        found.setdefault(len(chosen[0]), (true, chosen[:1] if len(chosen[0]) == len(y) else chosen))
    return list(found.values())


def fewer_than_asked(y: np.ndarray, sizes: Sequence[int] | None, shots: Sequence[int] | None) -> list[str]:
    """Return a note where more images were asked for than there are."""
    largest, wanted = int(np.bincount(y).max()), max(shots or sizes or [0])
    if shots and wanted > largest:
        return [f"{wanted:,} images a class were asked for, and no class has more than {largest:,}: those were used."]
    if not shots and wanted > len(y):
        return [f"{wanted:,} images were asked for, and train has {len(y):,}: those were used."]
    return []


def _shuffled_within_classes(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each row's rank within its class in a random order."""
    ranks = np.empty(len(y), int)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        ranks[rng.permutation(rows)] = np.arange(len(rows))
    return ranks


def _take(y: np.ndarray, ranks: np.ndarray, shots: int | None, size: int | None) -> np.ndarray:
    if shots is not None:
        return np.flatnonzero(ranks < shots)
    # the rows that come first in their class, relative to the class's size: stratified, and never a class without any
    counts = np.bincount(y)[y]
    order = np.lexsort((ranks, np.where(ranks == 0, 0, (ranks + 0.5) / counts)))
    return np.sort(order[: size or len(y)])


def _correct(
    name: str, X: np.ndarray, y: np.ndarray, rows: np.ndarray, X_test: np.ndarray, y_test: np.ndarray,
    settings: Mapping[str, Any], seed: int,
) -> np.ndarray:  # fmt: skip
    from threadpoolctl import threadpool_limits

    from ..heads import HEADS, make_head

    own = {key: value for key, value in settings.items() if key in HEADS[name].settings}
    with threadpool_limits(1):
        return make_head(name, seed=seed, **own).fit(X[rows], y[rows]).predict(X_test) == y_test


def as_values(points: Sequence[Point], split: str) -> dict[str, Any]:
    """Return a learning curve as JSON values: `points`, `forecasts`, and the `split` that was scored on."""
    forecasts = [found for head in dict.fromkeys(point.head for point in points) if (found := forecast(points, head))]
    return {
        "split": split,
        "points": [
            {"head": point.head, "shots": point.shots, "n": point.n, "accuracies": point.accuracies.tolist(),
             "mean": float(point.accuracies.mean()), "ci95": point.interval(),
             "sd": float(point.accuracies.std(ddof=1)) if len(point.accuracies) > 1 else None}
            for point in points
        ],
        "forecasts": [vars(found) for found in forecasts],
    }
