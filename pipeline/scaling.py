"""What a cluster would make of an extraction: a small model of rates that are measured on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import PipelineError
from .store import CacheWriter, Spec, cache_path

MOST_BLOCKS, SECONDS = 8, 1.0  # committed for the trial
PLANNED = 65_536  # images from which on blocks are as large as they get
FINISHED = 2048  # rows of the file that is assembled for the trial


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
            if not finish and (number == MOST_BLOCKS or (number and time.perf_counter() > begin + SECONDS)):
                break
            writer.commit(number, rows[: len(block)])
            done += len(block)
        if finish:
            begin = time.perf_counter()
            names = [f"{number:08d}.jpg" for number in range(images)]
            writer.finish(paths=names, labels=np.full(images, -1), splits=np.full(images, "none")).close()
        return done / (time.perf_counter() - begin), len(blocks[0])
