"""What an extraction would take, before it is begun: here, timed on a small sample, and on a cluster."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import DEFAULT, Backbone
from ..core.errors import PipelineError
from ..core.machine import available_memory
from ..core.progress import Progress, shown, silent
from ..data import DEFAULT_DATA, Dataset, Limits, UnreadableImageError, on_disk
from ..data.augmentation import Views
from ..data.files import DEFAULT_LIMITS
from ..engines import Running
from ..engines.engine import accelerated
from ..store import CacheWriter, Spec, cache_path, survey
from .caches import backbone_of, load_named, with_views
from .computer import LocalComputer

SAMPLE, SECONDS = 512, 10.0  # images at most, and the time after which no more are begun
CHUNK = 8  # images of a block
MORE = 16  # times as many of either, where an accelerator is to be kept busy
PIECES = 4  # blocks a worker from which the rates of the pieces are told
MOST_BLOCKS, TRIAL_SECONDS = 8, 1.0  # committed for the trial
PLANNED = 65_536  # images from which on blocks are as large as they get
FINISHED = 2048  # rows of the file that is assembled for the trial


def estimate(
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    views: int | Views | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_duplicates: bool = False,
    rehash: bool = False,
    retry_failed: bool = False,
    machines: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: Progress | bool = silent,
) -> Estimate:
    """Tell what `extract` would take: images, seconds, disk, memory, and what would be reused.

    Images are listed and hashed, and their digests remembered, as `extract` would; nothing else is written.

    Parameters
    ----------
    data, backbone, views, val_fraction, test_fraction, group_duplicates, rehash, retry_failed, limits, cache_dir, \
    dataset_name
        See `extract`.
    batch_size, workers, device, engine
        See `extract`.
    machines : int, optional
        Tell also what a cluster of so many machines like this one would take.
    """
    data = on_disk(data, cache_dir)
    progress = shown(progress)
    network = with_views(backbone_of(backbone, cache_dir=cache_dir), views)
    dataset = load_named(
        data, dataset_name, cache_dir=cache_dir, val_fraction=val_fraction,
        test_fraction=test_fraction, group_duplicates=group_duplicates, rehash=rehash, limits=limits,
        progress=progress,
    )  # fmt: skip
    return estimate_extraction(
        dataset, network, Running(device, engine, batch_size, workers), cache_dir=Path(cache_dir),
        retry_failed=retry_failed, machines=machines, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What `extract` would do, and what it would take.

    Attributes
    ----------
    path : Path
        The cache file that it would write.
    images, skipped : int
        Listed images, and files that are none.
    to_compute, reused, duplicates, known_failures : int
        Images that need a forward pass; that have a row somewhere; that are another's copy; that are known to fail.
    sampled, failed : int
        Images that were tried, and those of them that gave no features.
    images_per_second : float
        Of the sample, on all workers and without warming up; 0 where nothing is to be computed.
    seconds : float
        For all that is to be computed, loading the network included, listing and hashing (which were done) not.
    disk_bytes, disk_free : int
        Needed while it runs, the rows of the finished parts among them; what is free there.
    memory_bytes, memory_free : int
        The most that this process held so far, the sample included; what is left.
    notes : tuple of str
        Remarks for the user, one line each.
    scaling : Scaling or None
        What a cluster would take, where that was asked and anything is to be computed.
    pieces : dict of float
        Images a second of each piece of the work by itself: ``decode``, ``transfer`` to an accelerator, ``network``.
    limited_by : str
        The slowest of them. On a CPU they share the cores, and this one takes most of the time.
    """

    path: Path
    images: int
    skipped: int
    to_compute: int
    reused: int
    duplicates: int
    known_failures: int
    sampled: int
    failed: int
    images_per_second: float
    seconds: float
    disk_bytes: int
    disk_free: int
    memory_bytes: int
    memory_free: int
    notes: tuple[str, ...] = ()
    scaling: Scaling | None = None
    pieces: Mapping[str, float] = field(default_factory=dict)
    limited_by: str = ""


def estimate_extraction(
    dataset: Dataset,
    backbone: Backbone,
    running: Running = Running(),
    *,
    cache_dir: Path = Path("cache"),
    retry_failed: bool = False,
    machines: int | None = None,
    progress: Progress = silent,
) -> Estimate:
    """Tell what `extract_features` would take; see there for the parameters. Nothing is written that stays.

    With `machines`, tell also what a cluster of so many like this one would take.
    """
    path = cache_path(cache_dir, dataset.name, backbone.name, backbone.spec)
    found = survey(path, backbone.spec, dataset.digests, retry_failed=retry_failed)
    trial, notes, planned = _Trial(), list(dataset.notes), None
    if len(found.to_compute):
        begin, times = time.perf_counter(), MORE if accelerated(running.device, running.engine) else 1
        blocks = _sample(found.to_compute, SAMPLE * times, CHUNK * times)
        with closing(LocalComputer(backbone, dataset, blocks, running, None, len(found.to_compute))) as computer:
            loading, embedder = time.perf_counter() - begin, computer.embedder
            trial = _try(computer, blocks, progress)
            tried = np.concatenate(blocks[: PIECES * max(1, embedder.workers)])
            trial.pieces = computer.rates(tried) if trial.rate else {}
        trial.row_bytes = computer.row_bytes
        notes += computer.notes
        if trial.rate:
            trial.total = loading + len(found.to_compute) / trial.rate
            if machines is not None:
                shape = (backbone.views.count,) if backbone.views.count > 1 else ()
                load = Load(len(found.to_compute), len(dataset), trial.rate, max(1, embedder.workers), loading,
                            _mean_bytes(dataset, tried), (*shape, embedder.engine.features),
                            np.dtype(backbone.storage or embedder.engine.dtype))
                planned = scaling(load, measured_writing(_existing(path.parent), load), machines)
    return Estimate(
        path, len(dataset), len(dataset.skipped), len(found.to_compute), found.reused, found.duplicates,
        found.known_failures, trial.images, trial.failed, trial.rate, trial.total,
        found.room(trial.row_bytes or found.row_bytes), _free(path.parent), _peak_memory(), available_memory(),
        tuple(notes), planned, trial.pieces, min(trial.pieces, key=trial.pieces.__getitem__, default=""),
    )  # fmt: skip


@dataclass
class _Trial:
    images: int = 0
    failed: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    total: float = 0.0
    row_bytes: int = 0
    pieces: dict[str, float] = field(default_factory=dict)


class _EnoughError(Exception):
    """Raised to end a trial that has taken its time."""


def _sample(rows: np.ndarray, most: int, block: int) -> list[np.ndarray]:
    """Return images from all over those to compute, in blocks."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
    return [chosen[start : start + block] for start in range(0, len(chosen), block)]


def _try(computer: LocalComputer, blocks: list[np.ndarray], progress: Progress) -> _Trial:
    """Compute a sample as `extract` does, and keep nothing; the first blocks only warm it up."""
    trial, warm, done = _Trial(), min(max(1, computer.embedder.workers), len(blocks) - 1), 0

    def commit(number: int, rows: np.ndarray, failures: Mapping[int, str], passing: set[int]) -> None:
        nonlocal done
        done += len(rows) + len(failures)
        trial.failed += len(failures)
        trial.seconds = time.perf_counter() - begin  # not what is waited for afterwards, of which no rows are taken
        if trial.seconds > SECONDS:
            raise _EnoughError

    with progress(total=sum(map(len, blocks)), desc="Timing", unit="image") as bar:
        for part in (blocks[:warm], blocks[warm:]):
            begin, trial.images, done = time.perf_counter(), trial.images + done, 0
            if part:
                with suppress(_EnoughError):
                    computer.compute(commit, bar, part)
    trial.rate, trial.images = done / trial.seconds, trial.images + done
    return trial


def _mean_bytes(dataset: Dataset, images: np.ndarray) -> float:
    """Return how large image files are."""
    sizes = []
    for index in images.tolist():
        with suppress(UnreadableImageError):
            sizes.append(len(dataset.read(index)))
    return float(np.mean(sizes or [0]))


def _free(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _peak_memory() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True)
class Load:
    """What there is to do, and how fast this machine does it.

    Attributes
    ----------
    images : int
        To be computed.
    rows : int
        Of the complete file.
    images_per_second : float
        Of this machine, on all of its `threads`.
    threads : int
    loading : float
        Seconds until the network is ready.
    image_bytes : float
        Of an image file, on average.
    row_shape : tuple of int
    dtype : numpy dtype
    """

    images: int
    rows: int
    images_per_second: float
    threads: int
    loading: float
    image_bytes: float
    row_shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Writing:
    """How fast this machine, the one that writes, takes rows.

    Attributes
    ----------
    commits, finishes : float
        Rows a second: into committed blocks; into the complete file, which is then verified.
    block : int
        Images a block.
    """

    commits: float
    finishes: float
    block: int


@dataclass(frozen=True)
class Scaling:
    """What it would take with several machines like this one, if storage and network carry what is read and sent.

    Blocks are computed by all threads of all machines at once; meanwhile this machine alone commits the rows, and in
    the end assembles and verifies the file.

    Attributes
    ----------
    machines : int
    seconds : float
    efficiency : float
        Of one machine's time, divided by this many machines' time and by their number.
    most_machines : int
        So many make it faster; more do not.
    limited_by : {'commits', 'blocks'}
        What sets that: the rows that this machine can commit, or that there are no more blocks than threads.
    finishing : float
        Seconds to assemble and verify the file, whatever the number of machines.
    read_bytes_per_second, sent_bytes_per_second : float
        Images read by, and rows sent from, all machines together.
    commits_per_second : float
        Rows that this machine can commit.
    """

    machines: int
    seconds: float
    efficiency: float
    most_machines: int
    limited_by: str
    finishing: float
    read_bytes_per_second: float
    sent_bytes_per_second: float
    commits_per_second: float


def scaling(load: Load, writing: Writing, machines: int) -> Scaling:
    """Work out what so many machines would take.

    Raises
    ------
    PipelineError
        If that is no number of machines.
    """
    if machines < 1:
        raise PipelineError(f"The number of machines is {machines}; it must be at least 1.")
    blocks = math.ceil(load.images / writing.block)
    block_seconds = min(writing.block, load.images) * load.threads / load.images_per_second  # a thread has its share
    finishing = load.rows / writing.finishes

    def computing(machines: int) -> float:
        rounds = math.ceil(blocks / (machines * load.threads))
        return max(rounds * block_seconds, load.images / writing.commits)

    seconds, alone = (load.loading + computing(number) + finishing for number in (machines, 1))
    limits = {"commits": writing.commits / load.images_per_second, "blocks": blocks / load.threads}
    limited_by = min(limits, key=lambda name: limits[name])
    rate = load.images / computing(machines)
    row_bytes = math.prod(load.row_shape) * load.dtype.itemsize
    return Scaling(
        machines, seconds, alone / seconds / machines, max(1, math.ceil(limits[limited_by])), limited_by, finishing,
        rate * load.image_bytes, rate * row_bytes, writing.commits,
    )  # fmt: skip


def measured_writing(folder: Path, load: Load) -> Writing:
    """Write rows like those of `load` into caches that are removed again, and tell how fast that was.

    Parameters
    ----------
    folder : Path
        That exists, on the disk that is to be measured.

    Raises
    ------
    CacheError
        If there is too little room.
    """
    with tempfile.TemporaryDirectory(prefix=".pipeline-estimate-", dir=folder) as made:
        commits, block = _commit(Path(made) / "commits", load, min(load.images, PLANNED), finish=False)
        finishes, _ = _commit(Path(made) / "finishes", load, min(load.rows, FINISHED), finish=True)
    return Writing(commits, finishes, block)


def _commit(folder: Path, load: Load, images: int, finish: bool) -> tuple[float, int]:
    """Return rows a second of committing some blocks, or of finishing after all blocks, and the images of a block."""
    rng, spec = np.random.default_rng(0), Spec({"trial": 0})
    digests = rng.integers(0, 256, (images, 16), dtype=np.uint8)
    rows = rng.random((min(images, 1024), *load.row_shape), np.float32).astype(load.dtype)
    with CacheWriter.open(cache_path(folder, "trial", "trial", spec), spec) as writer:
        blocks = writer.plan(digests).blocks
        begin, done = time.perf_counter(), 0
        for number, block in enumerate(blocks):
            if not finish and (number == MOST_BLOCKS or (number and time.perf_counter() > begin + TRIAL_SECONDS)):
                break
            writer.commit(number, rows[: len(block)])
            done += len(block)
        if finish:
            begin = time.perf_counter()
            names = [f"{number:08d}.jpg" for number in range(images)]
            writer.finish(paths=names, labels=np.full(images, -1), splits=np.full(images, "none")).close()
        return done / (time.perf_counter() - begin), len(blocks[0])
