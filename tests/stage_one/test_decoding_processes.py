"""Decoding in processes for an accelerator, with the CPU as the device: the same rows, and the same promises."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.backbones import resolve
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.progress import SilentBar
from pipeline.data import load_dataset
from pipeline.data.augmentation import Views
from pipeline.data.preprocessing import MOST_PIXELS
from pipeline.data.staging import Room, stage
from pipeline.engines import Running
from pipeline.engines.embedding import StoppedError
from pipeline.engines.torch_engine import TorchEngine
from pipeline.stage_one import computer, decoding_processes
from pipeline.stage_one.decoding_processes import DecodingProcesses
from pipeline.stage_one.extraction import extract_features
from pipeline.stage_one.reading import Reading
from pipeline.store import CacheWriter

pytestmark = pytest.mark.skipif(not decoding_processes.possible(), reason="no memory without a name here")
ENGINE = TorchEngine.__init__


@pytest.fixture
def processes(monkeypatch):
    """Have the torch engine treat the CPU as an accelerator, which processes feed; return those that were made."""
    made: list[DecodingProcesses] = []

    def init(self, *words, **settings):
        ENGINE(self, *words, **{**settings, "owned": True})

    class Noted(DecodingProcesses):
        def __init__(self, *words):
            super().__init__(*words)
            made.append(self)
            self.were = [process.process for process in self._processes]

    monkeypatch.setattr(TorchEngine, "__init__", init)
    monkeypatch.setattr(computer, "accelerated", lambda *words: True)
    monkeypatch.setattr(computer, "MANY", 1)
    monkeypatch.setattr(computer, "DecodingProcesses", Noted)
    yield made
    assert made and all(process.poll() is not None for each in made for process in each.were), "none is left behind"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of several sizes, turned and upright, one broken, one elongated, one large, one that is not there."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    for number in range(21):
        width, height = int(rng.integers(40, 300)), int(rng.integers(40, 300))
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        kind = "png" if number % 7 == 3 else "jpg"
        Image.fromarray(noise).resize((width, height)).save(root / f"{number:02}.{kind}", exif=exif)
    whole = (root / "00.jpg").read_bytes()
    (root / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    Image.effect_noise((8, 1200), 60).convert("RGB").save(root / "tall.png")
    Image.effect_noise((900, 700), 60).convert("RGB").save(root / "large.jpg")
    return root


def extracted(folder: Path, place: Path, backbone=None, **how):
    dataset = load_dataset(str(folder), cache_dir=place)
    done = extract_features(dataset, backbone or resolve("pixels"), Running("cpu", "torch", **how), cache_dir=place)
    with done.open() as cache:
        return cache.paths, cache.read_rows(), dict(cache.skipped)


@pytest.mark.parametrize("views", [Views(), Views(3)], ids=["plain", "views"])
def test_rows_and_reasons_are_those_of_threads(folder, tmp_path, processes, monkeypatch, views):
    from dataclasses import replace

    backbone = replace(resolve("pixels"), views=views)
    paths, rows, skipped = extracted(folder, tmp_path / "processes", backbone, batch_size=6, workers=2)
    assert len(processes) == 1
    monkeypatch.setattr(TorchEngine, "__init__", ENGINE)
    monkeypatch.setattr(computer, "accelerated", lambda *words: False)
    expected_paths, expected, reasons = extracted(folder, tmp_path / "threads", backbone, workers=2)
    assert paths == expected_paths and len(paths) == 23
    assert skipped == reasons and len(skipped) == 1 and "truncated" in skipped["broken.jpg"]
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_estimate_tries_this_very_way_and_tells_each_piece(folder, tmp_path, processes):
    found = pipeline.estimate(str(folder), "pixels", cache_dir=tmp_path, device="cpu", engine="torch", batch_size=6)
    assert (found.sampled, found.failed) == (24, 1) and len(processes) == 1
    assert list(found.pieces) == ["decode", "transfer", "network"] and min(found.pieces.values()) > 0


def test_preparing_is_told_before_the_first_image(folder, tmp_path, processes):
    told = []

    class Bar(SilentBar):
        def update(self, n=1):
            told.append(n)

        def set_postfix_str(self, text):
            told.append(text)

    pipeline.extract(str(folder), "pixels", cache_dir=tmp_path, device="cpu", engine="torch", workers=1,
                     progress=lambda desc, **words: Bar() if desc == "Extracting" else SilentBar())
    assert told[:2] == ["preparing…", ""] and sum(told[2:]) == 24


def test_such_a_process_imports_nothing_heavy():
    words = ("import sys, pipeline.stage_one.decoding_processes; "
             "print([name for name in ('torch', 'sklearn', 'pandas', 'h5py', 'openvino') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout == "[]\n"


def test_a_process_that_is_killed_ends_the_run_with_one_line_and_what_is_done_is_kept(folder, tmp_path, processes,
                                                                                    monkeypatch):
    launch, killed = TorchEngine._launch, threading.Event()

    def after_the_first(self, staged, size):
        if not killed.is_set():
            killed.set()
            for process in processes[0].were:
                process.send_signal(signal.SIGKILL)
        return launch(self, staged, size)

    monkeypatch.setattr(TorchEngine, "_launch", after_the_first)
    with pytest.raises(PipelineError, match=r"ended by SIGKILL.*What is done is kept"):
        extracted(folder, tmp_path, batch_size=2, workers=1)
    monkeypatch.setattr(TorchEngine, "_launch", launch)
    paths, rows, _ = extracted(folder, tmp_path, batch_size=2, workers=1)
    assert len(paths) == len(rows) == 23


def test_a_file_that_changes_meanwhile_is_told_and_what_goes_stays_without_a_row(folder, tmp_path, processes):
    backbone = resolve("pixels")
    for number in range(12):
        Image.effect_noise((64, 64), 10 + number).convert("RGB").save(tmp_path / f"{number:02}.png")
    dataset = load_dataset(str(tmp_path), cache_dir=tmp_path / "cache")
    (tmp_path / "05.png").unlink()
    blocks, committed = [np.arange(8), np.arange(8, 12)], {}

    def commit(number, rows, failures, passing):
        committed[number] = len(rows), set(failures), set(passing)

    class Bar:
        def update(self, n):
            pass

    with closing(computer.LocalComputer(backbone, dataset, blocks, Running("cpu", "torch", 4, 2))) as local:
        assert local.compute(commit, Bar()) == 11
    assert committed == {0: (7, {5}, {5}), 1: (4, set(), set())}
    (tmp_path / "09.png").write_bytes((tmp_path / "08.png").read_bytes())
    with (closing(computer.LocalComputer(backbone, dataset, blocks, Running("cpu", "torch", 4, 2))) as local,
          pytest.raises(DataError, match=r"'09.png' changed while it was being extracted")):
        local.compute(commit, Bar())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=str)
def test_ctrl_c_and_a_full_disk_end_them_too(folder, tmp_path, processes, monkeypatch, error):
    commit, calls = CacheWriter.commit, []

    def second(self, *words):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return commit(self, *words)

    monkeypatch.setattr(CacheWriter, "commit", second)
    with pytest.raises((KeyboardInterrupt, OSError, PipelineError)):
        extracted(folder, tmp_path, batch_size=4, workers=2)
    assert all(process.poll() is not None for process in processes[0].were)
    assert len(extracted(folder, tmp_path, batch_size=4, workers=2)[0]) == 23


def test_giving_up_waits_for_no_batch_and_no_later_one_gets_its_rows(folder, tmp_path):
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    with closing(DecodingProcesses(resolve("efficientnet_lite0").preprocessing, 1, 64)) as made:
        with pytest.raises(StoppedError), made.decoded(dataset.part(np.arange(24).repeat(40)), lambda: True):
            pass
        with made.decoded(dataset.part(np.arange(3))) as found:
            assert found.staged.count == 3

        def refuse(memory, lock):
            raise RuntimeError("no such device")

        made.locked_by(refuse)
        made._locked.clear()
        with pytest.raises(RuntimeError, match="no such device"), made.decoded(dataset.part(np.arange(5))):
            pass
        made.locked_by(lambda memory, lock: None)
        with made.decoded(dataset.part(np.arange(2))) as found:
            assert found.staged.count == 2
        assert made._free.qsize() == len(made.slots) and made._idle.qsize() == 1


def test_with_next_to_no_memory_batches_go_over_the_line(folder, tmp_path, monkeypatch):
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    preprocessing = resolve("efficientnet_lite0").preprocessing
    with closing(DecodingProcesses(preprocessing, 1, 32)) as usual, usual.decoded(dataset) as expected:
        monkeypatch.setattr(decoding_processes, "available_memory", lambda: 0)
        with closing(DecodingProcesses(preprocessing, 1, 32)) as made, made.decoded(dataset) as found:
            assert len(made.slots[0]) == decoding_processes.LEAST and found.failures == expected.failures
            assert found.staged.count == expected.staged.count == 23
            engine = TorchEngine(resolve("efficientnet_lite0"), "cpu", 32, owned=True)
            np.testing.assert_allclose(engine.staged(found.staged), engine.staged(expected.staged), atol=1e-4)


def test_a_process_that_dies_at_once_is_one_line(folder, tmp_path, monkeypatch):
    popen = subprocess.Popen

    def short_lived(words, **settings):
        return popen([*words[:2], "raise SystemExit(3)"], **settings)

    monkeypatch.setattr(subprocess, "Popen", short_lived)
    with pytest.raises(PipelineError, match="ended with exit code 3"):
        made = DecodingProcesses(resolve("pixels").preprocessing, 1, 8)
        try:
            with made.decoded(load_dataset(str(folder), cache_dir=tmp_path)):
                pass
        finally:
            made.close()


def test_where_the_system_refuses_threads_decode_and_a_note_says_why(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchEngine, "__init__", lambda self, *words, **settings: ENGINE(
        self, *words, **{**settings, "owned": True}))  # fmt: skip
    monkeypatch.setattr(computer, "accelerated", lambda *words: True)
    monkeypatch.setattr(computer, "MANY", 1)

    def refused(name):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refused)
    done = pipeline.extract(str(folder), "pixels", cache_dir=tmp_path, device="cpu", engine="torch")
    assert done.rows == 23 and [note for note in done.notes if "Too many open files" in note]


SCRIPT = """
import sys, time
from pipeline.backbones import resolve
from pipeline.data import load_dataset
from pipeline.stage_one.decoding_processes import DecodingProcesses
made = DecodingProcesses(resolve("pixels").preprocessing, 2, 8)
with made.decoded(load_dataset(sys.argv[1], cache_dir=sys.argv[2])) as found:
    print(found.staged.count, *(each.process.pid for each in made._processes), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_the_process_that_made_them_however_it_goes(folder, tmp_path, ending):
    words = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as made:
        count, *processes = map(int, made.stdout.readline().split())
        assert count == 23
        os.kill(made.pid, ending)
    stop = time.monotonic() + 20
    while any(map(_alive, processes)) and time.monotonic() < stop:
        time.sleep(0.05)
    assert not any(map(_alive, processes))


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_large_images_and_those_that_do_not_fit_side_by_side_are_resized_before(folder, tmp_path):
    preprocessing = resolve("efficientnet_lite0").preprocessing
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    reading = Reading(dataset, preprocessing, for_device=True)
    large = dataset.paths.index("large.jpg")
    assert MOST_PIXELS < 900 * 700 and reading(large).shape == (1, 224, 224, 3)
    images = [reading(index) for index in range(8)]
    whole = stage(images, preprocessing.transform, Room(2**28, lambda size: np.empty(size, np.uint8)))
    capacity = whole.groups[0].images.nbytes // 2
    small = stage(images, preprocessing.transform, Room(capacity, lambda size: np.empty(size, np.uint8)))
    assert small.groups[0].images.nbytes <= capacity < whole.groups[0].images.nbytes
    assert sorted(small.places + small.groups[0].places) == list(range(8)) and small.places
    exact = Reading(dataset, preprocessing)
    for place, view in zip(small.places, small.views, strict=True):
        np.testing.assert_array_equal(view, exact(place)[0])


def test_a_batch_in_parts_is_the_batch(folder, tmp_path):
    """As when the device's memory runs out."""
    preprocessing = resolve("efficientnet_lite0").preprocessing
    reading = Reading(load_dataset(str(folder), cache_dir=tmp_path), preprocessing, for_device=True)
    images = [reading(index) for index in range(21)]
    engine = TorchEngine(resolve("efficientnet_lite0"), "cpu", 8, owned=True)
    whole = stage(images, preprocessing.transform, Room(2**28, lambda size: np.empty(size, np.uint8)))
    assert [part.count for part in whole.parts(8)] == [8, 8, 5]
    expected = np.concatenate([engine.images([image]) for image in images])
    np.testing.assert_allclose(engine.staged(whole), expected, atol=1e-4)
