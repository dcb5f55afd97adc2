"""Local workers share each block: few blocks are open, all cores are busy, and rows stay in their places."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import FeatureCache
from pipeline.backbones import resolve
from pipeline.core.errors import DataError
from pipeline.data import Dataset, UnreadableImageError, load_dataset
from pipeline.engines import Running
from pipeline.engines.embedding import Prefetcher
from pipeline.stage_one.computer import LocalComputer
from pipeline.stage_one.extraction import extract_features
from pipeline.stage_one.reading import Reading
from pipeline.store import CacheWriter

IMAGES = 100  # blocks of 32, 32, 32 and 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("grey") / "grey"
    root.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (64, 64), (2 * number,) * 3).save(root / f"{number:03}.png")
    return load_dataset(str(root), cache_dir=root.parent)


@pytest.fixture
def slow_reading(monkeypatch) -> dict[int, set[str]]:
    """Reading takes a moment; who read images of each block."""
    readers, read = defaultdict(set), Reading.__call__

    def slow(self: Reading, index: int) -> np.ndarray:
        time.sleep(0.002)
        readers[index // 32].add(threading.current_thread().name)
        if index == 7:
            raise UnreadableImageError("broken")
        return read(self, index)

    monkeypatch.setattr(Reading, "__call__", slow)
    return readers


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_rows_and_failures_are_in_their_places_whoever_computed_them(
    dataset, slow_reading, tmp_path, workers, batch_size
):
    running = Running("cpu", "torch", batch_size, workers)
    done = extract_features(dataset, resolve("pixels"), running, cache_dir=tmp_path)
    assert (done.rows, done.computed, done.skipped) == (IMAGES - 1, IMAGES - 1, 1)
    with FeatureCache.open(done.path) as cache:
        rows, names = cache.read_rows(), cache.paths
        assert cache.skipped == [("007.png", "broken")]
    assert names == [f"{number:03}.png" for number in range(IMAGES) if number != 7]
    assert (np.diff(rows.mean(1)) > 0).all(), "each image is brighter than the one before"
    if workers == 3 and batch_size == 8:
        assert len({name for name in slow_reading[0] if name.startswith("embed")}) > 1, "one block, several workers"


@pytest.mark.parametrize("workers", [0, 3])
def test_what_was_computed_before_an_error_is_committed(dataset, tmp_path, monkeypatch, workers):
    read = Reading.__call__

    def changed(self: Reading, index: int) -> np.ndarray:
        if index == 90:
            raise DataError("changed while it was being extracted")
        return read(self, index)

    backbone = resolve("pixels")
    with monkeypatch.context() as patched:
        patched.setattr(Reading, "__call__", changed)
        with pytest.raises(DataError, match="changed while"):
            extract_features(dataset, backbone, Running("cpu", "torch", workers=workers), cache_dir=tmp_path)
    done = extract_features(dataset, backbone, Running("cpu", "torch", workers=workers), cache_dir=tmp_path)
    assert (done.rows, done.computed) == (IMAGES, IMAGES - 64)


def test_an_image_that_is_slow_to_come_holds_up_its_own_worker_alone(dataset, tmp_path, monkeypatch):
    others, read = [], Reading.__call__

    def slow(self: Reading, index: int) -> np.ndarray:
        if index:
            others.append(index)
        elif threading.current_thread().name.startswith("embed"):
            deadline = time.monotonic() + 20
            while len(others) < IMAGES - 8 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(others) >= IMAGES - 8, "the other worker did all other batches meanwhile"
        return read(self, index)

    monkeypatch.setattr(Reading, "__call__", slow)
    monkeypatch.setattr(Prefetcher, "_work", lambda self: None)  # nobody takes the slow one before
    done = extract_features(dataset, resolve("pixels"), Running("cpu", "torch", workers=2), cache_dir=tmp_path)
    assert done.computed == IMAGES


def test_workers_go_on_while_a_block_is_being_committed(dataset, slow_reading, tmp_path):
    path = Path(tmp_path) / "grey" / f"pixels-{resolve('pixels').spec.short}.h5"
    backbone, done, seen = resolve("pixels"), [], []
    with CacheWriter.open(path, backbone.spec) as writer:
        plan = writer.plan(dataset.digests)
        computer = LocalComputer(backbone, dataset, plan.blocks, Running("cpu", "torch", workers=2))

        class Bar:
            def update(self, images: int) -> None:
                done.append(images)

        def commit(number: int, *rest: object) -> None:
            before = sum(done)
            time.sleep(0.3 if number == 0 else 0)
            seen.append((number, sum(done) - before))

        assert computer.compute(commit, Bar()) == IMAGES - 1
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] > 0
