"""Work on rows by all cores, in a way that is quick on busy machines too.

BLAS's and OpenMP's own threads wait for each other by spinning: on a machine that is busy otherwise, softmax
regression took 131 s with two BLAS threads and 3.6 s with one. So heads let BLAS use one thread, and cut rows into
pieces for plain threads instead (numpy releases the interpreter's lock while it multiplies).
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

from .rows import StreamedRows

SMALL = 4_000_000  # values; less work than this is not worth a second thread
PIECE = 500_000  # values in a piece at the least


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
