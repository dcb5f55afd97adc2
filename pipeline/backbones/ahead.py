"""Decoding the first images while the network is being prepared, which leaves all cores but one without work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import islice
from types import TracebackType

from ..data.device_resize import Ready

MOST_BYTES = 64 * 2**20  # of pixels held


class Ahead:
    """A function from an index to pixels that has its first results early. Use it as a context manager.

    For the length of the `with` block, threads of its own work on the indices. Called for one of those then or later,
    it hands the result over, once; for any other it calls the function.

    Parameters
    ----------
    function : callable
        From an index to an array; what it raises is raised where the result is asked for.
    indices : iterable of int
        In the order in which they will be asked for.
    threads : int
        0: nothing is done ahead.

    Attributes
    ----------
    seconds : float
        What was done ahead, summed over threads.
    """

    def __init__(self, function: Callable[[int], Ready], indices: Iterable[int], threads: int):
        self._function, self._rest, self._held, self.seconds = function, iter(indices), 0, 0.0
        self._found: dict[int, Future[Ready]] = {}
        self._enough, self._turn = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._work, name="ahead", daemon=True) for _ in range(threads)]

    def __enter__(self) -> Ahead:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def __call__(self, index: int) -> Ready:
        """Return the function's result for an index."""
        early = self._found.pop(index, None)
        return self._function(index) if early is None else early.result()

    def _work(self) -> None:
        begin = time.perf_counter()
        while not self._enough.is_set() and self._held < MOST_BYTES:
            with self._turn:
                for index in islice(self._rest, 1):
                    early = self._found[index] = Future[Ready]()
                    break
                else:
                    break
            try:
                early.set_result(self._function(index))
            except BaseException as error:
                early.set_exception(error)
            else:
                self._held += early.result().nbytes
        with self._turn:
            self.seconds += time.perf_counter() - begin
