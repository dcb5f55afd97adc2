"""Who computes the rows of stage one: the cores and accelerators of this machine, or the workers of a Dask cluster.

Both compute the same blocks with the same code, so they give the same bits; this process alone writes the cache.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..backbones import Backbone, as_asked, description
from ..core.cluster import Cluster, address, connected, require_same, versions
from ..core.errors import ClusterError, PipelineError
from ..data import Dataset, UnreadableImageError
from ..data.augmentation import OURS
from ..engines import Embedder, Running
from ..engines.embedding import Indices, Prefetcher, available_cores
from ..engines.engine import accelerated
from ..engines.memory import CUDA_BATCH
from ..store import Spec
from ..store.spec import canonical_json
from . import decoding_processes
from .decoding_processes import DecodingProcesses
from .reading import Reading

TURNED, MOST_TURNS = 0.5, 64  # seconds that a worker runs the network for its rate, and batches at most
MANY = 256  # images a worker from which on processes are worth their start
_building = threading.Lock()


@dataclass(frozen=True)
class Computed:
    """What came of a block of images.

    Attributes
    ----------
    rows : ndarray
        As `Embedder.embed` gives them.
    failures : dict
        From an image's position in the data set to the reason why it has no row.
    passing : set of int
        Those of them that could not even be read.
    notes : tuple of str
        Remarks of the engine, for the user.
    by : str
        The worker's address.
    """

    rows: np.ndarray
    failures: Mapping[int, str]
    passing: set[int] = field(default_factory=set)
    notes: tuple[str, ...] = ()
    by: str = ""


Commit = Callable[[int, np.ndarray, Mapping[int, str], set[int]], None]


class Computer(Protocol):
    """What computes blocks of images.

    Attributes
    ----------
    notes : list of str
        Remarks for the user, one line each.
    row_bytes : int
        Of an image's row, or 0 where that is not known beforehand.
    head_start : float
        Seconds that all workers would have taken for what was done before `compute`.
    """

    notes: list[str]
    row_bytes: int
    head_start: float

    def compute(self, commit: Commit, bar: Any) -> int:
        """Compute all blocks, commit each under its number, and return how many rows there were."""


class LocalComputer:
    """This machine. While the network is made ready on one core, the others decode what comes first.

    An accelerator is fed by processes that decode, where there are images enough to be worth their start.

    Parameters
    ----------
    backbone : Backbone
    dataset : Dataset
    blocks : sequence of int arrays
    running : Running
    cache_dir : Path, optional
        See `Embedder.of`.
    sample_of : int
        That many images are going to be computed, and the blocks are a sample to tell how long it will take: nothing
        is decoded before the clock runs.
    """

    def __init__(
        self, backbone: Backbone, dataset: Dataset, blocks: Sequence[np.ndarray], running: Running,
        cache_dir: Path | None = None, sample_of: int = 0,
    ):  # fmt: skip
        threads = available_cores() if running.workers is None else running.workers
        self._backbone, self._dataset, self._blocks = backbone, dataset, blocks
        self._reading = Reading(dataset, backbone.preprocessing)
        many = (sample_of or sum(map(len, blocks))) >= MANY * threads > 0
        known = backbone.views.count == 1 or backbone.views.augmentation in OURS  # to another process, too
        wanted = many and known and accelerated(running.device, running.engine) and backbone.decoder == "pillow"
        self._processes, why = None, "that takes Linux"
        if wanted and decoding_processes.possible():
            try:
                self._processes = DecodingProcesses(backbone.preprocessing, threads, running.batch_size or CUDA_BATCH)
            except OSError as error:
                why = error.strerror or str(error)
        ahead = 0 if self._processes or sample_of else max(threads - 1, 0)
        self._pixels = Prefetcher(self._reading, map(int, chain.from_iterable(blocks)), ahead)
        try:
            with self._pixels:
                self._embedder = Embedder.of(backbone, running, cache_dir)
            engine = self._embedder.engine
            self.notes = engine.notes
            # what was decoded ahead is resized already; from now on the device does that
            self._reading.for_device = self._embedder.resizes
            if self._processes and not self._reading.for_device:
                self.close()  # it is no accelerator after all
            if self._processes:
                self._embedder.workers = len(self._processes.slots)
                self._processes.locked_by(engine.lock_pages)  # type: ignore[attr-defined]
            elif wanted and self._reading.for_device:
                self.notes.append(f"Images are decoded on threads, which wait for each other, not in processes: {why}.")
        except BaseException:
            self.close()
            raise
        self.row_bytes = backbone.row_bytes(engine.features, engine.dtype)
        self.head_start = self._pixels.seconds / max(threads, 1)

    def close(self) -> None:
        """End the processes that decode."""
        if self._processes:
            self._processes.close()
        self._processes = None

    def compute(self, commit: Commit, bar: Any, blocks: Sequence[np.ndarray] | None = None) -> int:
        """Compute all blocks, or those given, see `Computer`."""
        views, computed, blocks = self._backbone.views.count, 0, self._blocks if blocks is None else blocks

        def divided() -> Iterator[list[Indices]]:
            return (self._embedder.batches(images, views) for images in blocks)

        def work(batch: Indices) -> tuple[np.ndarray, Mapping[int, str], set[int]]:
            if self._processes:
                with self._processes.decoded(self._dataset.part(np.asarray(batch)), self._embedder.stopped) as found:
                    rows = self._embedder.embed_staged(found.staged, views)
                    bar.update(len(batch))
                    return self._backbone.stored(rows), _named_by(batch, found.failures), {
                        int(batch[place]) for place in found.passing}
            rows, failures = self._embedder.embed(batch, self._pixels, bar.update, views)
            return self._backbone.stored(rows), failures, self._reading.passing & failures.keys()

        # the workers share each block: few are open at a time, all cores stay busy to the end, and none of them waits
        # until the disk confirms a block; two blocks a worker may be ahead of an image that is slow to come
        ahead = 2 * len(self._embedder.batches(blocks[0], views))
        with closing(self._embedder.map(work, chain.from_iterable(divided()), ahead)) as results:
            for number, batches in enumerate(divided()):
                parts = list(islice(results, len(batches)))
                rows = np.concatenate([part for part, *_ in parts])
                failures = {index: reason for _, failed, _ in parts for index, reason in failed.items()}
                commit(number, rows, failures, set().union(*(passing for *_, passing in parts)))
                computed += len(rows)
        return computed

    @property
    def embedder(self) -> Embedder:
        """What runs the network here."""
        return self._embedder

    def rates(self, images: np.ndarray) -> dict[str, float]:
        """Measure the pieces of the work, each by itself on all workers.

        Parameters
        ----------
        images : int array
            Some to decode, of the data set.

        Returns
        -------
        dict of float
            Images a second: ``decode`` (and resize, where the device does not), ``transfer`` to an accelerator where
            there is one, and ``network``.
        """
        embedder, views = self._embedder, self._backbone.views.count
        batches, clock = embedder.batches(images, views), time.perf_counter

        def decode(batch: Indices) -> int:
            """Return how many bytes there are for the device."""
            if self._processes:
                with self._processes.decoded(self._dataset.part(np.asarray(batch)), embedder.stopped) as found:
                    return found.staged.nbytes
            size = 0
            for index in map(int, batch):
                with suppress(UnreadableImageError):
                    size += self._reading(index).nbytes
            return size

        begin = clock()
        moved = sum(embedder.map(decode, batches))
        found = {"decode": len(images) / (clock() - begin)}
        if self._reading.for_device:
            copied = embedder.engine.bytes_per_second()  # type: ignore[attr-defined]
            found["transfer"] = copied * len(images) / max(moved, 1)
        size = embedder.batch_size
        pixels = np.zeros((size, *self._backbone.transform.crop, 3), np.uint8)
        begin = clock()
        embedder.engine(pixels)
        turns = min(max(int(TURNED / (clock() - begin)), 1), MOST_TURNS) * max(embedder.workers, 1)
        begin = clock()
        for _ in embedder.map(lambda _: embedder.engine(pixels), range(turns)):
            pass
        return {**found, "network": turns * size / views / (clock() - begin)}


def _named_by(batch: Indices, failures: Mapping[int, str]) -> dict[int, str]:
    """Return reasons by the image's position in the data set instead of its place in a batch."""
    return {int(batch[place]): reason for place, reason in failures.items()}


class ClusterComputer:
    """The workers of a Dask cluster: blocks are tasks, and rows come back to be committed here.

    Parameters
    ----------
    cluster : Cluster
    backbone : Backbone
        Each worker finds it by itself, and works only if it is the same to the bit.
    dataset : Dataset
    blocks : sequence of int arrays
    running : Running
        A worker makes an engine for as many threads as it has.
    """

    row_bytes, head_start = 0, 0.0

    def __init__(
        self, cluster: Cluster, backbone: Backbone, dataset: Dataset, blocks: Sequence[np.ndarray], running: Running
    ):
        self._dataset, self._blocks = dataset, blocks
        self._cluster, self._spec, self.notes = cluster, backbone.spec, list[str]()
        fields = description(backbone)
        if Path(fields["weights"]).is_file():  # workers stand in other folders
            fields["weights"] = str(Path(fields["weights"]).absolute())
        self._job = canonical_json({"backbone": fields, "versions": versions(), "running": {
            "device": running.device, "engine": running.engine, "batch_size": running.batch_size}})

    def compute(self, commit: Commit, bar: Any) -> int:
        rows, dataset, blocks = 0, self._dataset, self._blocks
        tasks = ((self._job, number, dataset.part(images)) for number, images in enumerate(blocks))
        for number, found in self._cluster.map(_on_worker, tasks):
            images = blocks[number]
            self._require_unreadable_here_too(dataset, found, images)
            commit(number, found.rows, _named_by(images, found.failures),
                   {int(images[at]) for at in found.passing})
            self.notes += [note for note in found.notes if note not in self.notes]
            rows += len(found.rows)
            bar.update(len(images))
            bar.set_postfix_str(f"{self._cluster.threads()} threads of the cluster")
        return rows

    @staticmethod
    def _require_unreadable_here_too(dataset: Dataset, found: Computed, images: np.ndarray) -> None:
        """Refuse a worker that does not see the images: its rows would be missing, and nobody would know why."""
        for at in sorted(found.passing)[:1]:
            index = int(images[at])
            try:
                dataset.read(index)
            except UnreadableImageError:
                return
            raise ClusterError(
                f"Worker {found.by} cannot read {str(dataset.root / dataset.paths[index])!r} "
                f"({found.failures[at]}), which this machine can. Every worker must find the images under the same "
                "path, or take them from a URL. What is done is kept."
            )


@contextmanager
def computer_of(
    backbone: Backbone, dataset: Dataset, blocks: Sequence[np.ndarray], running: Running,
    scheduler: str | None = None, cache_dir: Path | None = None,
) -> Iterator[Computer]:  # fmt: skip
    """Yield this machine, made ready for a backbone, or the cluster of a scheduler; see `extract_features`."""
    if scheduler is None:
        with closing(LocalComputer(backbone, dataset, blocks, running, cache_dir)) as computer:
            yield computer
    else:
        with connected(scheduler) as cluster:
            yield ClusterComputer(cluster, backbone, dataset, blocks, running)


def _on_worker(job: str, number: int, part: Dataset) -> tuple[int, Computed]:
    """Compute a block, on a worker of a cluster."""
    with _named():
        backbone, embedder = _prepared(job)
        embedder.share_cores()
        reading = Reading(part, backbone.preprocessing)
        rows, failures = embedder.embed(np.arange(len(part)), reading, views=backbone.views.count)
    passing = reading.passing & failures.keys()
    return number, Computed(backbone.stored(rows), failures, passing, tuple(embedder.engine.notes), address())


def _prepared(job: str) -> tuple[Backbone, Embedder]:
    with _building:  # by one of the worker's threads
        return _prepare(job)


@lru_cache(maxsize=1)
def _prepare(job: str) -> tuple[Backbone, Embedder]:
    from distributed import get_worker

    asked = json.loads(job)
    require_same(asked["versions"])
    backbone, spec = as_asked(asked["backbone"]), Spec(asked["backbone"]["spec"])
    if different := spec.differences(backbone.spec):
        raise PipelineError("it has another backbone than this machine: " + "; ".join(
            f"{name} {theirs!r} there, {ours!r} here" for name, theirs, ours in different))
    return backbone, Embedder.of(backbone, Running(**asked["running"], workers=get_worker().state.nthreads))


@contextmanager
def _named() -> Iterator[None]:
    """Say on which worker an error happened, in one type that can travel."""
    try:
        yield
    except ClusterError:
        raise
    except PipelineError as error:
        raise ClusterError(f"Worker {address()}: {error}") from None
