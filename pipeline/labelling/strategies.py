"""Which images to ask for next: published strategies of active learning, on frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..core.registry import Registry

LIKELY = 2000  # candidates among which a strategy that compares them with each other looks
MANY = 4000  # images that are clustered at the most
NEIGHBOURS = 20
FEW = 5  # answers a class, up to which nothing is known of where the head is unsure


@dataclass(frozen=True)
class Pool:
    """What there is to choose from.

    Attributes
    ----------
    rows : (N, D) float32 array
        Features of all images, answered or not.
    open : (U,) int array
        Images without an answer.
    answered : (M,) int array
        Images with one; in a session without those that accuracy is estimated on.
    probabilities : (N, K) array or None
        By a head that has learned these answers; None as long as there is none.
    """

    rows: np.ndarray
    open: np.ndarray
    answered: np.ndarray
    probabilities: np.ndarray | None


Strategy = Callable[[Pool, int, np.random.Generator], np.ndarray]
STRATEGIES: Registry[Strategy] = Registry("strategy of asking")


def at_random(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return images drawn at random."""
    return rng.permutation(pool.open)[:count]


def by_margin(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the images whose two likeliest classes are closest (Scheffer, Decomain and Wrobel, 2001)."""
    if pool.probabilities is None:
        return typical(pool, count, rng)
    return pool.open[np.argsort(_margins(pool), kind="stable")[:count]]


def typical(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return typical images of the parts of the feature space from which there is no answer yet.

    TypiClust of Hacohen, Dekel and Weinshall, "Active learning on a budget: opposite strategies suit high and low
    budgets", ICML 2022: cluster all images into as many clusters as there will be answers, and of the largest ones
    without an answer take the image with the nearest neighbours.
    """
    if len(pool.rows) > MANY:  # a part tells as well where the clusters are
        kept = np.union1d(pool.answered, rng.permutation(pool.open)[: max(MANY, 2 * count)])
        place = np.searchsorted(kept, pool.answered), np.flatnonzero(np.isin(kept, pool.open))
        part = Pool(pool.rows[kept], place[1], place[0], None)
        return kept[_typical(part, count, rng)]
    return _typical(pool, count, rng)


def _typical(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    clusters = min(len(pool.answered) + count, max(len(pool.rows) // 2, 1), 500)
    made = MiniBatchKMeans(clusters, n_init=1, batch_size=1024, random_state=int(rng.integers(2**31)))
    numbers = made.fit_predict(pool.rows)
    known = np.bincount(numbers[pool.answered], minlength=clusters)
    of_open = numbers[pool.open]
    sizes = np.bincount(of_open, minlength=clusters)
    order = np.lexsort((-sizes, known))
    found: list[int] = []
    for turn in range(count):  # with fewer clusters than images, again from the first
        for number in order:
            members = pool.open[of_open == number]
            members = members[~np.isin(members, found)]
            if len(members) and len(found) < count:
                found.append(int(members[np.argmin(_distance_to_neighbours(pool.rows[members]))]))
        if len(found) >= min(count, len(pool.open)) or turn > 20:
            break
    return np.array(found[:count], int)


def badge(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return images at which the head would learn most, and different things.

    BADGE of Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020: k-means++
    seeds among the gradients of a linear head, were its guesses true. Looked at are those of the smallest margin.
    """
    if pool.probabilities is None:
        return typical(pool, count, rng)
    near = pool.open[np.argsort(_margins(pool), kind="stable")[: max(LIKELY, 10 * count)]]
    found = pool.probabilities[near]
    error = -found
    error[np.arange(len(near)), found.argmax(axis=1)] += 1
    rows = pool.rows[near]
    lengths = np.square(error).sum(axis=1) * np.square(rows).sum(axis=1)  # of the outer product of both
    chosen = [int(lengths.argmax())]
    distances = np.full(len(near), np.inf)
    while len(chosen) < min(count, len(near)):
        last = chosen[-1]
        across = (error @ error[last]) * (rows @ rows[last])
        distances = np.minimum(distances, np.maximum(lengths + lengths[last] - 2 * across, 0))
        distances[chosen] = 0
        total = distances.sum()
        chosen.append(int(rng.choice(len(near), p=distances / total)) if total > 0 else
                      int(rng.choice(np.setdiff1d(np.arange(len(near)), chosen))))
    return near[chosen]


def by_need(pool: Pool, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return typical images while there are few answers, later those of small margin."""
    if pool.probabilities is None or len(pool.answered) < FEW * pool.probabilities.shape[1]:
        return typical(pool, count, rng)
    return by_margin(pool, count, rng)


def _margins(pool: Pool) -> np.ndarray:
    assert pool.probabilities is not None
    two = np.partition(pool.probabilities[pool.open], -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]


def _distance_to_neighbours(rows: np.ndarray) -> np.ndarray:
    """Return each row's mean distance to its nearest ones."""
    rows = rows[:LIKELY]
    lengths = np.square(rows).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * rows @ rows.T, 0)
    nearest = min(NEIGHBOURS, len(rows) - 1)
    return np.sqrt(np.partition(squared, nearest, axis=1)[:, : nearest + 1]).mean(axis=1)


DEFAULT = "badge"
STRATEGIES["margin"] = by_margin
STRATEGIES["need"] = by_need
STRATEGIES["badge"] = badge
STRATEGIES["typical"] = typical
STRATEGIES["random"] = at_random
