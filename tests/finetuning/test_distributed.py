"""Several processes train as one: same batches, same losses, one writer, and one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from finetuning_support import one_thread, small_backbone, small_photos  # noqa: F401

from pipeline.finetuning import FinetuneSettings, train

SETTINGS = {"epochs": 2, "batch_size": 4, "lr": 0.003, "precision": "float32", "freeze_norm": True,
            "class_weight": "balanced", "checkpoint_minutes": 0}
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from finetuning_support import load_dataset, small_backbone
from pipeline.core.errors import PipelineError
from pipeline.finetuning import FinetuneSettings, train
from pipeline.core.progress import silent

torch.set_num_threads(1)
folder, settings, death = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
dataset = load_dataset(str(folder / "photos"), cache_dir=folder / "cache")
if death and os.environ["RANK"] == "1":
    from pipeline.finetuning.optimisation import Stepper
    step = Stepper.step
    def deadly(self, batch, place, rate):
        if place == (0, death):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, place, rate)
    Stepper.step = deadly
try:
    result = train(dataset, small_backbone(), FinetuneSettings(**settings), run_folder=folder / "run", log=print)
except PipelineError as error:
    sys.exit(f"error: {error}")
if result is not None:
    content = {"weight": result.weight.tolist(), "history": result.history, "rank": os.environ["RANK"]}
    (folder / "result.json").write_text(json.dumps(content))
"""


def torchrun(folder: Path, settings: dict, death: int = 0) -> subprocess.CompletedProcess:
    tests = Path(__file__).parent.parent
    (folder / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(map(str, (tests / "helpers", tests.parent)))
    place = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               folder / "script.py", folder, json.dumps(settings), str(death)]
    return subprocess.run(command, env=place, capture_output=True, text=True, timeout=300)


def test_two_processes_have_the_loss_curve_and_weights_of_one_and_one_of_them_writes(tmp_path):
    dataset = small_photos(tmp_path)
    alone = train(dataset, small_backbone(), FinetuneSettings(**SETTINGS))
    done = torchrun(tmp_path, SETTINGS)
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "result.json").read_text())
    for one, two in zip(alone.history, together["history"], strict=True):
        for name in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)
    np.testing.assert_allclose(together["weight"], alone.weight, atol=1e-4)
    assert together["rank"] == "0"
    assert done.stdout.count("epoch 1/2") == 1


def test_a_dead_process_ends_all_with_one_clear_line_and_leaves_a_checkpoint(tmp_path):
    small_photos(tmp_path)
    done = torchrun(tmp_path, SETTINGS, death=3)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    # torchrun names the dead one; the other says one line, unless torchrun ends it first
    assert "SIGKILL" in done.stderr and len(lines) <= 1 and all("--resume" in line for line in lines)
    assert list((tmp_path / "run" / "checkpoints").glob("*.json"))


def test_batchnorm_that_cannot_be_synchronised_is_refused_before_training(tmp_path):
    small_photos(tmp_path)
    done = torchrun(tmp_path, {**SETTINGS, "freeze_norm": False})
    assert done.returncode != 0 and "--freeze-norm" in done.stderr


def test_two_processes_train_from_one_cache_of_activations(tmp_path):
    small_photos(tmp_path)
    words = ["pipeline", "finetune", "photos", "--limit", "16", "--cached", "--unfreeze", "last-1", "--epochs", "1",
             "--freeze-norm", "--precision", "float32", "--json"]
    found = []
    for number, start in enumerate((["-m"], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                                             "-m"])):
        place = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        own = ["--cache-dir", f"cache-{number}", "--runs-dir", f"runs-{number}"]
        done = subprocess.run([sys.executable, *start, *words, *own], env=place, cwd=tmp_path, capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["runs"][0]["splits"])
        assert done.stderr.count("epoch 1/1") == 1 and done.stderr.count("training from") == 1
    for split in found[0]:
        assert found[1][split]["log_loss"] == pytest.approx(found[0][split]["log_loss"], abs=1e-4)
