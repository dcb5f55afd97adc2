"""Which images are alike, and which are like no other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..core.progress import Progress, silent
from ..heads.rows import cores, one_thread

# Two images are nearly the same if the cosine of their centred features reaches NEAR, or if each is the other's
# nearest, at a cosine of ALIKE at least, and RATIO times as far as the next one or nearer (the ratio test of Lowe,
# "Distinctive image features from scale-invariant keypoints", IJCV 2004). Of 120 photographs saved again at quality
# 40 to 90 and at 0.4 to 1.5 times their size the first rule finds 79, both find 117, under EfficientNet-Lite0. Among
# 1,347 untouched cats, dogs, ants and bees they join 3 pairs, none across splits: one picture twice, the same two ants
# twice, two dogs that are merely alike. Missed: copies shrunk to 90 pixels, which look like other blurred things.
NEAR, ALIKE, RATIO = 0.9, 0.65, 0.7
NEIGHBOURS = 10
FENCE = 3.0  # quartile ranges above the third quartile: Tukey's "far out"
BLOCK, TILE = 512, 4096  # rows compared with so many others at once
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Likeness:
    """Which images of a cache are alike, from one comparison of all that differ in content with all others.

    Parameters
    ----------
    rows : (N, D) array
    digests : (N, 16) uint8 array
        Of the files' content.
    threshold : float
        Cosine of centred features that is near enough by itself; see `NEAR`.
    neighbours : int
        K, for the distances.
    progress : Progress
    """

    def __init__(self, rows: np.ndarray, digests: np.ndarray, threshold: float = NEAR, neighbours: int = NEIGHBOURS,
                 progress: Progress = silent):
        _, first, content = np.unique(digests, axis=0, return_index=True, return_inverse=True)
        self._content, self._copies = content.reshape(-1), np.bincount(content.reshape(-1))
        self._neighbours = min(neighbours, len(rows) - 1)
        self._nearest = nearest(unit(rows)[first], max(2, self._neighbours), threshold, progress)

    def groups(self) -> Iterator[tuple[np.ndarray, bool, float]]:
        """Yield groups of images that are the same, or nearly.

        Yields
        ------
        (n,) int array, bool, float
            Rows; whether they are byte for byte the same; the least similarity that joined one of them to another.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count, content = len(self._copies), self._content
        left, right, cosine = map(np.concatenate, zip(self._nearest.near, self._nearest.mutual(), strict=True))
        graph = coo_array((np.ones(len(left)), (left, right)), shape=(count, count))
        _, component = connected_components(graph, directed=False)
        least = np.ones(count)
        strongest = np.zeros(count)  # of each image, its best partner
        np.maximum.at(strongest, left, cosine)
        np.maximum.at(strongest, right, cosine)
        joined = strongest > 0
        np.minimum.at(least, component[joined], strongest[joined])
        group = component[content]
        sizes = np.bincount(group)
        order = np.argsort(group, kind="stable")
        for members in np.split(order, np.cumsum(sizes)[:-1]):
            if len(members) > 1:
                kinds = len(np.unique(content[members]))
                yield members, kinds == 1, float(least[group[members[0]]])

    def distances(self) -> np.ndarray:
        """Return each image's mean distance, 1 − cosine of centred features, to its K nearest others.

        Source: Ramaswamy et al., "Efficient algorithms for mining outliers from large data sets", SIGMOD 2000 (with
        the mean over neighbours of Angiulli and Pizzuti, 2002).
        """
        k = self._neighbours
        if k < 1:
            return np.zeros(len(self._content))
        own = np.minimum(self._copies - 1, k)  # copies of the image itself, at no distance
        there = self._nearest.which >= 0
        copies = np.where(there, self._copies[self._nearest.which], 0)
        before = copies.cumsum(axis=1) - copies
        taken = np.clip((k - own)[:, None] - before, 0, copies)
        return (1 - (own + (taken * self._nearest.cosines).sum(axis=1)) / k)[self._content]


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows less their mean, each divided by its length: what all images share says nothing of likeness."""
    centred = rows - rows.mean(axis=0, dtype=np.float64).astype(rows.dtype)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Nearest:
    """The nearest of N unit rows.

    Attributes
    ----------
    which, cosines : (N, K) int and float32 arrays
        Of each row its K nearest others, the nearest first; -1 and -2 where there are fewer.
    near : three arrays
        The pairs (i < j) whose cosine reaches the threshold, and that cosine.
    """

    which: np.ndarray
    cosines: np.ndarray
    near: Pairs

    def mutual(self) -> Pairs:
        """Return the pairs (i < j) that are much nearer to each other than to any third, and their cosine."""
        own = np.arange(len(self.which))
        nearest, cosine, second = self.which[:, 0], self.cosines[:, 0], self.cosines[:, 1]
        next_one = np.maximum(second, second[nearest])
        apart = (cosine >= ALIKE) & (1 - cosine <= RATIO * (1 - next_one)) & (len(own) > 2)
        chosen = np.flatnonzero(apart & (nearest[nearest] == own) & (nearest > own))
        return chosen, nearest[chosen], cosine[chosen]


def nearest(directions: np.ndarray, count: int, threshold: float, progress: Progress = silent) -> Nearest:
    """Compare all unit rows (N, D) with all others, on all cores; no more than `BLOCK` times `TILE` at once on each.

    Parameters
    ----------
    directions : (N, D) array
    count : int
        K.
    threshold : float
        See `Nearest.near`.
    progress : Progress
    """
    found = []
    with (one_thread(), ThreadPoolExecutor(cores()) as pool,
          progress(total=len(directions), desc="Comparing", unit="image") as bar):
        for block in pool.map(lambda start: _nearest_of(directions, start, count, threshold),
                              range(0, len(directions), BLOCK)):
            found.append(block)
            bar.update(len(block[0]))
    which, cosines = (np.concatenate([block[part] for block in found]) for part in (0, 1))
    left, right, cosine = (np.concatenate([block[2][part] for block in found]) for part in range(3))
    return Nearest(which, cosines, (left, right, np.minimum(cosine, 1.0)))


def _nearest_of(
    directions: np.ndarray, start: int, count: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, Pairs]:  # fmt: skip
    """Return what `nearest` does for the block of rows that begins at `start`."""
    block = directions[start : start + BLOCK]
    which, best = np.full((len(block), count), -1), np.full((len(block), count), -2, np.float32)
    near = []
    for first in range(0, len(directions), TILE):
        cosines = block @ directions[first : first + TILE].T
        itself = np.arange(max(start, first), min(start + len(block), first + cosines.shape[1]))
        cosines[itself - start, itself - first] = -2  # not its own neighbour
        if first + cosines.shape[1] > start:
            i, j = np.nonzero(cosines >= threshold)
            later = j + first > i + start
            near.append((i[later] + start, j[later] + first, cosines[i[later], j[later]]))
        if first == 0 and cosines.shape[1] > count:  # all would be new: only the nearest of them are worth sorting
            j = np.argpartition(cosines, -count, axis=1)[:, -count:].ravel()
            i = np.repeat(np.arange(len(block)), count)
        else:
            i, j = np.nonzero(cosines > best[:, -1:])
        rows = np.concatenate([np.repeat(np.arange(len(block)), count), i])
        others, values = np.append(which.ravel(), j + first), np.append(best.ravel(), cosines[i, j])
        order = np.lexsort((others, -values, rows))
        begin = np.searchsorted(rows[order], np.arange(len(block)))
        chosen = order[begin[:, None] + np.arange(count)]
        which, best = others[chosen], values[chosen]
    left, right, cosine = (np.concatenate(part) for part in zip(*near, strict=True))
    return which, best, (left, right, cosine)


def outlying(distances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the positions beyond Tukey's outer fence, the farthest first, and the median distance."""
    low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75))
    beyond = np.flatnonzero(distances > high + FENCE * (high - low))
    return beyond[np.argsort(-distances[beyond], kind="stable")], float(middle)
