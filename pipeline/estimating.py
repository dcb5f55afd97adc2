"""What an extraction would take, before it is begun: a small sample is timed through the real engine."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .backbones import Backbone, Embedder
from .data import Dataset, UnreadableImageError
from .memory import available_memory
from .progress import Progress, silent
from .scaling import Load, Scaling, measured_writing, scaling
from .store import cache_path, survey

SAMPLE, SECONDS = 512, 10.0  # images at most, and the time after which no more are begun
CHUNK = 8  # images handed to a worker at once


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


def estimate_extraction(
    dataset: Dataset,
    backbone: Backbone,
    *,
    cache_dir: Path = Path("cache"),
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "auto",
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
        begin = time.perf_counter()
        embedder = Embedder.of(backbone, device=device, engine=engine, batch_size=batch_size, workers=workers)
        trial = _try(dataset, backbone, embedder, found.to_compute, progress)
        loading = time.perf_counter() - begin - trial.seconds
        trial.row_bytes = backbone.views.count * embedder.engine.features * embedder.engine.dtype.itemsize
        notes += embedder.engine.notes
        if trial.rate:
            trial.total = loading + len(found.to_compute) / trial.rate
            if machines is not None:
                shape = (backbone.views.count,) if backbone.views.count > 1 else ()
                load = Load(len(found.to_compute), len(dataset), trial.rate, max(1, embedder.workers), loading,
                            trial.image_bytes, (*shape, embedder.engine.features), embedder.engine.dtype)
                planned = scaling(load, measured_writing(_existing(path.parent), load), machines)
    return Estimate(
        path, len(dataset), len(dataset.skipped), len(found.to_compute), found.reused, found.duplicates,
        found.known_failures, trial.images, trial.failed, trial.rate, trial.total,
        found.room(trial.row_bytes or found.row_bytes), _free(path.parent), _peak_memory(), available_memory(),
        tuple(notes), planned,
    )  # fmt: skip


@dataclass
class _Trial:
    images: int = 0
    failed: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    total: float = 0.0
    row_bytes: int = 0
    image_bytes: float = 0.0


def _try(
    dataset: Dataset, backbone: Backbone, embedder: Embedder, rows: np.ndarray, progress: Progress
) -> _Trial:  # fmt: skip
    """Run images from all over the data set through the engine; the first ones only warm it up."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)]
    size = max(CHUNK, embedder.batch_size)
    chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    trial, done, sizes = _Trial(), list[int](), list[int]()

    def pixels(index: int) -> np.ndarray:
        content = dataset.read(index)
        sizes.append(len(content))
        return backbone.pixels(content, dataset.limits)

    def compute(chunk: np.ndarray) -> int:
        try:
            _, failures = embedder.embed(chunk, pixels, done.append, backbone.views.count)
        except UnreadableImageError:  # what holds the image is gone
            return len(chunk)
        return len(failures)

    with progress(total=len(chosen), desc="Timing", unit="image") as bar:
        warm = min(max(1, embedder.workers), len(chunks) - 1)
        for failed in embedder.map(compute, chunks[:warm]):
            trial.failed += failed
        bar.update(before := sum(done))
        begin = time.perf_counter()
        stop = begin + SECONDS
        left = (chunk for chunk in chunks[warm:] if time.perf_counter() < stop)
        for failed in embedder.map(compute, left):
            trial.failed += failed
        trial.seconds = time.perf_counter() - begin
        bar.update(sum(done) - before)
    trial.images, trial.image_bytes = sum(done), float(np.mean(sizes or [0]))
    trial.rate = (trial.images - before) / trial.seconds
    return trial


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

