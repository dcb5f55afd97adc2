"""Whatever ends a training, it goes on from its last checkpoint to the same weights."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetuning_support import Killed, bar_that, kill, one_thread, same, small_backbone, small_photos  # noqa: F401

import pipeline
from pipeline.backbones.efficientnet_lite import EfficientNetLite
from pipeline.core.errors import PipelineError, RunError
from pipeline.finetuning import FinetuneSettings, train
from pipeline.finetuning.checkpoints import Checkpoints
from pipeline.store.disk import Disk

WHOLE = FinetuneSettings(epochs=3, batch_size=6, lr=0.01, precision="float32", ema=0.5, mixup=0.2, deterministic=True,
                         optimizer="adamw", checkpoint_minutes=0)
SETTINGS = replace(WHOLE, strategy="partial", unfreeze="last-1")
SELDOM_SAVED = replace(SETTINGS, checkpoint_minutes=60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_photos(tmp_path_factory.mktemp("durability"))


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def uninterrupted(dataset, backbone):
    return train(dataset, backbone, SETTINGS)


def equal(one, other) -> bool:
    clock = ("seconds", "images_per_second", "waited")
    lines = [[{key: line[key] for key in line if key not in clock} for line in run.history] for run in (one, other)]
    return same(one.state, other.state) and (one.weight == other.weight).all() and lines[0] == lines[1]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])  # of nine
def test_training_that_dies_at_a_step_resumes_to_the_same_weights(steps, tmp_path, dataset, backbone, uninterrupted):
    with pytest.raises(Killed):
        train(dataset, backbone, SETTINGS, run_folder=tmp_path, progress=bar_that(steps, kill))
    resumed = train(dataset, backbone, SETTINGS, run_folder=tmp_path, resume=True)
    assert equal(resumed, uninterrupted) and resumed.best_epoch == uninterrupted.best_epoch


SCRIPT = """
import sys, os, signal
from pathlib import Path
from finetuning_support import *
import test_durability as durability
from pipeline.finetuning import train
folder, number, settings = Path(sys.argv[1]), signal.Signals(int(sys.argv[2])), getattr(durability, sys.argv[3])
torch.set_num_threads(1)
before = signal.getsignal(number)
die = lambda: os.kill(os.getpid(), number)
dataset = load_dataset(str(folder / "photos"), cache_dir=folder / "cache")
try:
    train(dataset, small_backbone(), settings, run_folder=folder / "run", progress=durability.bar_that(5, die))
except KeyboardInterrupt as error:
    print(error, "handled as before" if signal.getsignal(number) is before else "handled otherwise")
"""


def run_and_signal(folder: Path, number: int, settings: str) -> subprocess.CompletedProcess:
    """Train in another process, which sends itself a signal at the fifth of nine steps."""
    here = Path(__file__).parent
    paths = here, here.parent / "helpers", here.parent.parent
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", SCRIPT, folder, str(int(number)), settings]
    return subprocess.run(command, env=place, stdout=subprocess.PIPE, text=True, timeout=200)


def test_after_sigkill_another_process_resumes_to_the_same_weights(tmp_path, backbone):
    dataset = small_photos(tmp_path)
    # the whole network: its convolutions lie channels-last in memory, and so must what the optimiser keeps of them
    uninterrupted = train(dataset, backbone, WHOLE)
    assert run_and_signal(tmp_path, signal.SIGKILL, "WHOLE").returncode == -signal.SIGKILL
    lines = []
    resumed = train(dataset, backbone, WHOLE, run_folder=tmp_path / "run", resume=True, log=lines.append)
    assert lines[0] == "continuing after epoch 1, step 1"
    assert equal(resumed, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(number, tmp_path, backbone, uninterrupted):
    dataset = small_photos(tmp_path)
    done = run_and_signal(tmp_path, number, "SELDOM_SAVED")
    assert done.returncode == 0
    assert done.stdout == "interrupted after epoch 1, step 2; continue with --resume handled as before\n"
    resumed = train(dataset, backbone, SELDOM_SAVED, run_folder=tmp_path / "run", resume=True)
    assert equal(resumed, uninterrupted)  # the photographs are cut alike in every folder


def test_a_finished_training_resumes_without_another_step(tmp_path, dataset, backbone, uninterrupted):
    train(dataset, backbone, SETTINGS, run_folder=tmp_path)
    assert equal(train(dataset, backbone, SETTINGS, run_folder=tmp_path, resume=True, progress=bar_that(1, kill)),
                 uninterrupted)


def test_a_finished_run_is_not_trained_again_and_other_settings_or_data_do_not_continue_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_photos(tmp_path)
    asked = {"strategy": "head-only", "epochs": 1, "batch_size": 4, "name": "r"}
    run, said = pipeline.finetune("photos", **asked), []
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.path.iterdir()}
    assert pipeline.finetune("photos", **asked, resume=True, log=said.append).path == run.path
    assert len(said) == 1 and "finished" in said[0]
    for more in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match=r"runs/r: it was made with lr 0\.002, now 0\.5\."):
            pipeline.finetune("photos", **{**asked, "lr": 0.5}, resume=True, **more)
    metrics = json.loads((run.path / "metrics.json").read_text())
    for name, other in (("classes", ["other", "names"]), ("asked", {"head": "logistic"})):
        made = tmp_path / "runs" / name
        made.mkdir()
        (made / "metrics.json").write_text(json.dumps({**metrics, name: other}))
        with pytest.raises(RunError, match="classes" if name == "classes" else "not made by this command"):
            pipeline.finetune("photos", **{**asked, "name": name}, resume=True)
    next(path for path in Path("photos").rglob("*") if path.is_file()).unlink()
    with pytest.raises(RunError, match=r"runs/r: it was made with images '\w+', now '\w+'\."):
        pipeline.finetune("photos", **asked, resume=True)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in run.path.iterdir()} == before
    assert sorted(path.name for path in Path("runs").glob("[!.]*")) == ["asked", "classes", "r"]


def test_an_unfinished_training_is_not_overwritten_and_other_settings_do_not_continue_it(tmp_path, dataset, backbone):
    with pytest.raises(Killed):
        train(dataset, backbone, SETTINGS, run_folder=tmp_path, progress=bar_that(2, kill))
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="--resume"):
        train(dataset, backbone, SETTINGS, run_folder=tmp_path)
    with pytest.raises(RunError, match=r"lr 0\.01, now 0\.02"):
        train(dataset, backbone, replace(SETTINGS, lr=0.02), run_folder=tmp_path, resume=True)
    with pytest.raises(RunError, match="images"):
        train(replace(dataset, labels=1 - dataset.labels), backbone, SETTINGS, run_folder=tmp_path, resume=True)
    assert content == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_loss_that_is_no_number_stops_with_step_rate_and_advice_and_keeps_the_checkpoint(tmp_path, dataset, backbone):
    settings = replace(SETTINGS, optimizer="sgd", lr=1e30, mixup=0.0, ema=0.0)
    with pytest.raises(PipelineError, match=r"loss became (nan|inf) in epoch \d at step \d.* rate 1e\+30.*--lr 1e\+29"):
        train(dataset, backbone, settings, run_folder=tmp_path)
    assert Checkpoints(tmp_path).newest()


def limited(most: int, monkeypatch) -> list[int]:
    """Make the network run out of memory with more than `most` images; return the sizes that it was asked for."""
    asked, forward = [], EfficientNetLite.forward

    def greedy(self, images):
        if self.training:
            asked.append(len(images))
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(EfficientNetLite, "forward", greedy)
    return asked


def test_out_of_memory_computes_batches_in_more_parts_says_so_and_takes_the_same_steps(dataset, backbone, monkeypatch):
    settings = FinetuneSettings(epochs=1, batch_size=6, augmentation="none", lr=0.01, precision="float32",
                                freeze_norm=True)
    unlimited = train(dataset, backbone, settings)
    asked, lines = limited(2, monkeypatch), []
    result = train(dataset, backbone, settings, log=lines.append)
    assert asked == [6, 3, 2, 2, 2] + [2] * 6
    assert [line for line in lines if "4 parts of 2 images" in line]
    for name, tensor in unlimited.state.items():
        torch.testing.assert_close(result.state[name], tensor, atol=1e-5, rtol=1e-4)


def test_out_of_memory_with_a_single_image_is_one_clear_line(dataset, backbone, monkeypatch):
    limited(0, monkeypatch)
    with pytest.raises(PipelineError, match="Out of memory on cpu with 1 images at once"):
        train(dataset, backbone, FinetuneSettings(batch_size=4, epochs=1))


LIMITED = """
import resource, signal, sys
import torch
torch.set_num_threads(1)
{prepare}
from pipeline.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(main(sys.argv[1:]))
"""


def finetune_under(limit: str, folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run the command in a process that sets itself a limit first."""
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    words = ["finetune", "--data", folder / "photos", "--cache-dir", folder / "cache", "--runs-dir", folder / "runs",
             "--name", "run", "--epochs", "1", "-j", "1", "--precision", "float32", *flags]
    return subprocess.run([sys.executable, "-c", LIMITED.format(prepare=limit), *map(str, words)], env=place,
                          capture_output=True, text=True)


def test_a_disk_too_small_for_the_run_is_one_clear_line(tmp_path):
    small_photos(tmp_path)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**21,) * 2)"
    done = finetune_under(limit, tmp_path, "-b", "6", "--strategy", "head-only")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: Cannot write the run")
    assert "File too large" in done.stderr.splitlines()[-1]


class FullDisk(Disk):
    """A disk that has room for so many more files."""

    def __init__(self, room: int):
        self.room = room

    def create(self, path):
        self.room -= 1
        file = super().create(path)
        if self.room < 0:
            def full(data):
                os.write(file._fd, memoryview(data).cast("B")[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            file.write = full
        return file


@pytest.mark.parametrize("room", range(4))
def test_a_full_disk_loses_no_earlier_checkpoint(room, tmp_path):
    tensors = {"weights": torch.arange(10.0)}
    Checkpoints(tmp_path).save(tensors, {"epoch": 1})
    checkpoints = Checkpoints(tmp_path, FullDisk(room))
    saved = 1
    with pytest.raises(OSError, match="No space left"):
        for epoch in range(2, 10):
            checkpoints.save({"weights": tensors["weights"] * epoch}, {"epoch": epoch})
            saved = epoch
    found, record, remarks = Checkpoints(tmp_path).newest()
    assert record == {"epoch": saved} and not remarks
    assert torch.equal(found["weights"], tensors["weights"] * saved)


def test_a_full_disk_does_not_end_training_but_is_said(tmp_path, dataset, backbone, uninterrupted, monkeypatch):
    monkeypatch.setattr("pipeline.finetuning.training.Checkpoints", lambda folder: Checkpoints(folder, FullDisk(2)))
    lines = []
    result = train(dataset, backbone, SETTINGS, run_folder=tmp_path, log=lines.append)
    assert equal(result, uninterrupted)
    assert any("No space left" in line for line in lines)


def test_two_checkpoints_are_kept_and_a_damaged_newest_gives_way_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for epoch in range(5):
        checkpoints.save({"weights": torch.full((3,), float(epoch))}, {"epoch": epoch})
    assert len(list(checkpoints.folder.iterdir())) == 4
    newest = checkpoints.records()[0]
    for path in (newest, newest.with_suffix(".safetensors")):
        sound = path.read_bytes()
        for place in range(0, len(sound), 7):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 16]) + sound[place + 1 :])
            tensors, record, remarks = checkpoints.newest()
            assert record == {"epoch": 3} and (tensors["weights"] == 3).all() and len(remarks) == 1
        path.write_bytes(sound)
    newest.write_text(json.dumps([1]))
    assert checkpoints.newest()[1] == {"epoch": 3}
