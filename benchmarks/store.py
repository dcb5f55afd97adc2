"""What durability and verification of the features cache cost.

    python benchmarks/store.py [--rows 200000] [--dimension 1280] [--repeat 5] [--folder /tmp]

Writes a cache of random features the way stage one does, then times reading it plainly with h5py, hashing
it, and reading it verified. Files are warm in the page cache, so that the disk's own speed does not blur the
comparison. The median of the repeats is shown; run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from turns import in_turn

from pipeline.store import CacheWriter, FeatureCache, Spec, cache_path


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--dimension", type=int, default=1280)
    options.add_argument("--repeat", type=int, default=5)
    options.add_argument("--folder", default=None, help="where to write; the system's temporary folder by default")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = write(Path(folder), given.rows, given.dimension)
        compare(path, given.repeat)


def write(folder: Path, rows: int, dimension: int) -> Path:
    """Write a cache block by block; print what each part took."""
    spec = Spec({"benchmark": [rows, dimension]})
    path = cache_path(folder, "benchmark", "random", spec)
    random = np.random.default_rng(0)
    digests = random.integers(0, 256, (rows, 16), dtype=np.uint8)
    features = random.normal(size=(1024, dimension)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with CacheWriter.open(path, spec) as writer:
        start = time.perf_counter()
        plan = writer.plan(digests)
        planned = time.perf_counter()
        for number, block in enumerate(plan.blocks):
            writer.commit(number, features[: len(block)])
        committed = time.perf_counter()
        paths = [f"class/{number:07d}.jpg" for number in range(rows)]
        writer.finish(paths=paths, labels=np.zeros(rows), splits=np.full(rows, "train"), classes=["class"]).close()
        finished = time.perf_counter()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{rows:,} x {dimension:,} float32, {path.stat().st_size / 1e9:.2f} GB")
    print(f"plan {planned - start:.2f} s; commit {committed - planned:.2f} s ({len(plan.blocks)} shards); "
          f"finish {finished - committed:.2f} s (write, fsync, verify); memory grew by {grown:.0f} MB")  # fmt: skip
    return path


def compare(path: Path, repeat: int) -> None:
    """Print the time of each way to read."""
    ways = {
        "plain h5py read": lambda: plain(path),
        "one SHA-256 pass over it": None,
        "verified read (FeatureCache.read_rows)": lambda: verified(path),
        "verify without keeping (cache verify's first pass)": lambda: verify(path),
        "open for the metadata": lambda: FeatureCache.open(path).close(),
    }
    features = plain(path)
    ways["one SHA-256 pass over it"] = lambda: hashlib.sha256(features.data).digest()
    seconds = in_turn({name: partial(timed, way) for name, way in ways.items()}, repeat)
    for name, taken in seconds.items():
        print(f"{name:52s} {statistics.median(taken):8.4f} s   (best {min(taken):.4f})")
    bound = statistics.median(seconds["plain h5py read"]) + statistics.median(seconds["one SHA-256 pass over it"])
    ratio = statistics.median(seconds["verified read (FeatureCache.read_rows)"]) / bound
    print(f"verified read / (plain read + SHA-256): {ratio:.2f} (must be at most 1)")


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def plain(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["features"][:]


def verified(path: Path) -> np.ndarray:
    with FeatureCache.open(path) as cache:
        return cache.read_rows()


def verify(path: Path) -> None:
    with FeatureCache.open(path) as cache:
        assert cache.problems() == []


if __name__ == "__main__":
    main()
