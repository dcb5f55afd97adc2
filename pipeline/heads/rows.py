"""Training rows: streamed from disk where memory does not hold them, worked on by all cores.

BLAS's and OpenMP's own threads wait for each other by spinning: on a machine that is busy otherwise, softmax
regression took 131 s with two BLAS threads and 3.6 s with one. So heads let BLAS use one thread, and cut rows into
pieces for plain threads instead (numpy releases the interpreter's lock while it multiplies).

Whatever a head learns by sums over rows goes through `map_rows`, which takes arrays and streamed rows alike: one
piece of code for both, and the same sums.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, reduce
from operator import iadd
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ..core.errors import HeadError

CHUNK_VALUES = 8_000_000  # read at a time; several chunks are in memory at once
BUFFER_VALUES = 64_000_000  # shuffled at a time
RUN = 256  # neighbouring rows that are read together into a shuffled buffer
SMALL = 4_000_000  # values; less work than this is not worth a second thread
PIECE = 500_000  # values in a piece at the least


class StreamedRows:
    """Features (N, D) that are read when they are needed.

    Parameters
    ----------
    read : callable
        From ascending positions (n,) to those rows, (n, D).
    shape : (int, int)
        N and D.
    finish : callable, optional
        What is done with rows once read, from float32 (n, D') to (n, D).
    """

    ndim = 2

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int],
                 finish: Callable[[np.ndarray], np.ndarray] | None = None):
        self.read, self.shape = read, shape
        self.finish = finish or _numbers

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """N times D."""
        return self.shape[0] * self.shape[1]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> StreamedRows:
        """Return these rows, changed by a function of (n, D) rows that gives a row for each."""
        finish = self.finish
        width = function(np.zeros((1, self.shape[1]), np.float32)).shape[1]
        return StreamedRows(self.read, (self.shape[0], width), lambda rows: function(finish(rows)))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the rows at ascending positions."""
        return self.finish(self.read(positions))

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position of the first row, rows as read), in order; `finish` is left to the caller's threads."""
        step = max(1, CHUNK_VALUES // max(1, self.shape[1]))
        starts = range(0, len(self), step)
        yield from _ahead((start, self.read(np.arange(start, min(start + step, len(self))))) for start in starts)

    def buffers(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield ascending positions, about `BUFFER_VALUES` values at a time: each a sample from all over the rows.

        Caches often lie sorted by class, so neighbours alone would be a poor shuffle: of every few thousand
        neighbours, each buffer takes one short run. All buffers together hold every row once.
        """
        count = max(1, -(-self.size // BUFFER_VALUES))
        runs = np.arange(-(-len(self) // RUN))
        padded = np.full(-(-len(runs) // count) * count, -1)
        padded[: len(runs)] = runs
        for chosen in rng.permuted(padded.reshape(-1, count), axis=1).T:
            starts = np.sort(chosen[chosen >= 0]) * RUN
            positions = (starts[:, None] + np.arange(RUN)).ravel()
            yield positions[positions < len(self)]


def _numbers(rows: np.ndarray) -> np.ndarray:
    """Return rows as float32, and refuse what is no number, as `Head.fit` does for arrays."""
    rows = np.asarray(rows, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(rows.sum())
    if suspicious and not np.isfinite(rows).all():
        raise HeadError("The features hold NaN or infinity.")
    return rows


def _ahead(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield what an iterator yields, while a thread already makes the next."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending = pool.submit(next, iterator, None)
        while (found := pending.result()) is not None:
            pending = pool.submit(next, iterator, None)
            yield found


@contextmanager
def one_thread(X: Any = None) -> Iterator[None]:
    """Let BLAS use one thread, and OpenMP too unless the features `X` are many."""
    small = not hasattr(X, "shape") or np.size(X) < SMALL
    with threadpool_limits(1, None if small else "blas"):
        yield


def cores() -> int:
    """Return how many threads this process should use: one in a worker process, whose siblings use the others."""
    if multiprocessing.parent_process() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_rows(function: Callable[..., Any], rows: np.ndarray | StreamedRows, *arrays: np.ndarray) -> Iterator[Any]:
    """Call a function on consecutive pieces of arrays of equal length, on all cores; yield the results in order.

    How rows are cut does not depend on the number of cores, so neither do sums over the pieces.

    Parameters
    ----------
    function : callable
        Of a piece of each array.
    rows : (N, ...) array or StreamedRows
    *arrays : (N, ...) arrays
    """
    if not isinstance(rows, StreamedRows):
        yield from _map_pieces(function, rows, *arrays)
        return
    for start, chunk in rows.chunks():
        own = [array[start : start + len(chunk)] for array in arrays]
        yield from _map_pieces(lambda piece, *others: function(rows.finish(piece), *others), chunk, *own)


def sum_rows(function: Callable[..., Any], rows: np.ndarray | StreamedRows, *arrays: np.ndarray) -> Any:
    """Return the sum of what `map_rows` yields: new arrays, or numbers."""
    return reduce(iadd, map_rows(function, rows, *arrays))


def _map_pieces(function: Callable[..., Any], *arrays: np.ndarray) -> Iterator[Any]:
    n = len(arrays[0])
    pieces = max(1, min(16, arrays[0].size // PIECE))
    bounds = [n * piece // pieces for piece in range(pieces + 1)]
    parts = [tuple(array[start:stop] for array in arrays) for start, stop in itertools.pairwise(bounds)]
    if pieces == 1 or cores() == 1:
        yield from (function(*part) for part in parts)
    else:
        yield from _pool(os.getpid()).map(lambda part: function(*part), parts)


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return this process's threads; a forked child has none of its parent's."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="heads")
