"""From images to features on all cores: one worker a core, each decoding and running the network.

The first images are decoded while the network is being prepared, which leaves all cores but one without work.

No hand-over between decoders and a network, so no idle core and no contention: Pillow and torch both release Python's
lock. With an accelerator the same workers decode and hand it their batches in turn.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ..backbones.backbone import Backbone
from ..data import UnreadableImageError, nvjpeg
from ..data.device_resize import Encoded, Ready
from ..data.preprocessing import Preprocessing
from ..data.staging import Staged
from .engine import Engine, Replicas, Running, make_engine
from .torch_engine import TorchEngine

MOST_BYTES = 64 * 2**20  # of pixels held
Indices = Sequence[int] | np.ndarray
Job = TypeVar("Job")
Result = TypeVar("Result")


class Prefetcher:
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

    def __enter__(self) -> Prefetcher:
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


class StoppedError(Exception):
    """Raised in a worker when the work is being given up elsewhere."""


class Embedder:
    """Computes features of images, on all cores.

    Parameters
    ----------
    engine : Engine
    batch_size : int, optional
        Views a forward pass (of plain images: images); default 8 on a CPU, as many as fit elsewhere.
    workers : int, optional
        Threads; default one a core. 0: everything in the calling thread.
    """

    def __init__(self, engine: Engine, batch_size: int | None = None, workers: int | None = None):
        self.engine = engine
        self.batch_size = batch_size or engine.batch_size
        self.workers = available_cores() if workers is None else workers
        self._stop = threading.Event()

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        running: Running = Running(),
        cache_dir: Path | None = None,
    ) -> Embedder:
        """Make a backbone ready on this machine; in `cache_dir` prepared networks are kept, see `make_engine`."""
        threads = available_cores() if running.workers is None else running.workers
        made = make_engine(backbone.plain, running.device, running.engine, batch_size=running.batch_size,
                           workers=threads, cache_dir=cache_dir)
        return cls(made, running.batch_size, threads)

    @property
    def resizes(self) -> bool:
        """Whether the engine takes images as a device does, see `Preprocessing.for_device`."""
        return getattr(self.engine, "resizes", False)

    def preprocess(self, preprocessing: Preprocessing) -> Callable[..., Ready]:
        """Return what makes of a file's content, and limits, what the engine suits to be given."""
        return preprocessing.for_device if self.resizes else preprocessing.pixels

    def embed(
        self,
        indices: Indices,
        pixels: Callable[[int], Ready],
        done: Callable[[int], object] = lambda n: None,
        views: int = 1,
    ) -> tuple[np.ndarray, dict[int, str]]:
        """Compute the features of some images in this thread.

        Parameters
        ----------
        indices : sequence of int, length N
        pixels : callable
            From an index to its image, see `preprocess`; raises `UnreadableImageError` for one that has none.
        done : callable
            Told after each batch how many images it held.
        views : int
            V.

        Returns
        -------
        rows : ndarray, shape (M, D), or (M, V, D) of several views
            In the order of `indices`, without those that failed.
        failures : dict
            From index to reason; M + len(failures) = N.

        Raises
        ------
        StoppedError
            If the work is being given up.
        """
        rows, failures = [np.empty((0, self.engine.features), self.engine.dtype)], dict[int, str]()
        for batch in self.batches(indices, views):
            found: dict[int, Ready] = {}
            for index in map(int, batch):
                if self._stop.is_set():
                    raise StoppedError
                with noting(failures, index):
                    found[index] = pixels(index)
            if found:
                rows += self._forward(found, failures)
            done(len(batch))
        return _by_image(np.concatenate(rows), views), failures

    def embed_staged(self, batch: Staged, views: int = 1) -> np.ndarray:
        """Compute the features of a batch that is laid out already, on an engine that `resizes`; see `embed`."""
        assert isinstance(self.engine, (TorchEngine, Replicas))
        if not batch.count:
            return _by_image(np.empty((0, self.engine.features), self.engine.dtype), views)
        return _by_image(self.engine.staged(batch), views)

    def batches(self, indices: Indices, views: int = 1) -> list[Indices]:
        """Divide images into those of a forward pass each (of several, where it does not take all views of one)."""
        images = max(1, self.batch_size // views)
        return [indices[start : start + images] for start in range(0, len(indices), images)]

    def _forward(self, found: dict[int, Ready], failures: dict[int, str]) -> list[np.ndarray]:
        """Run images through the engine, in batches: their views, or what the device makes these from."""
        views = [one for one in found.values() if isinstance(one, np.ndarray)]
        if len(views) < len(found):
            assert isinstance(self.engine, (TorchEngine, Replicas))
            try:
                return [self.engine.images(list(found.values()))]
            except nvjpeg.UndecodableError:
                return self._forward(_one_by_one(found, failures), failures)
        if not views:
            return []
        pixels, size = np.concatenate(views), self.batch_size
        return [self.engine(pixels[start : start + size]) for start in range(0, len(pixels), size)]

    def stopped(self) -> bool:
        """Tell whether the work is being given up."""
        return self._stop.is_set()

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], ahead: int = 2
    ) -> Generator[Result, None, None]:  # fmt: skip
        """Apply `function` to each job on the workers; results come in the order of the jobs.

        Only `ahead` jobs a worker are ahead of the consumer at any time. When one fails, or the consumer stops, the
        others are given up at their next batch.
        """
        if self.workers == 0:
            yield from map(function, jobs)
            return
        self._stop.clear()
        pending: deque[Future[Result]] = deque()
        with self._cores_shared() as share, ThreadPoolExecutor(self.workers, "embed", share) as executor:
            try:
                for job in jobs:
                    pending.append(executor.submit(function, job))
                    if len(pending) > ahead * self.workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                self._stop.set()
                executor.shutdown(wait=True, cancel_futures=True)
                self._stop.clear()

    def share_cores(self) -> None:
        """Leave the other workers their cores: to be called first by every thread that embeds."""
        if torch := self._torch():
            torch.set_num_threads(max(1, min(torch.get_num_threads(), available_cores() // max(1, self.workers))))

    @contextmanager
    def _cores_shared(self) -> Iterator[Callable[[], None]]:
        """Yield what each worker calls first, so that they share the cores."""
        threads = torch.get_num_threads() if (torch := self._torch()) else 0
        try:
            yield self.share_cores
        finally:
            if torch:
                torch.set_num_threads(threads)  # because a worker's setting also holds for threads made later

    def _torch(self) -> Any:
        """Return torch where it computes on cores; who has not imported it does not need it."""
        return sys.modules.get("torch") if self.engine.on_cpu else None


def _by_image(rows: np.ndarray, views: int) -> np.ndarray:
    """Return rows (N, D) of views as (N / V, V, D) where there are several an image."""
    return rows if views == 1 else rows.reshape(-1, views, rows.shape[1])


@contextmanager
def noting(failures: dict[int, str], index: int) -> Iterator[None]:
    """Keep the reason why an image could not be read."""
    try:
        yield
    except UnreadableImageError as error:
        failures[index] = str(error)


def _one_by_one(found: dict[int, Ready], failures: dict[int, str]) -> dict[int, Ready]:
    """Decode files that could not be decoded together."""
    decoded: dict[int, Ready] = {}
    for index, one in found.items():
        with noting(failures, index):
            decoded[index] = one.decoded() if isinstance(one, Encoded) else one
    return decoded


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
