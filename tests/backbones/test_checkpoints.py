"""Checkpoints as people have them: wrapped, prefixed, with arguments and optimisers beside the weights."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from pipeline.backbones import resolve
from pipeline.core.errors import UnknownNameError, WeightsError
from pipeline.engines import TorchEngine

NETWORK = models.resnet18(weights=None)
WEIGHTS = NETWORK.state_dict()
PIXELS = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)


def rows(path, name: str = "resnet18") -> np.ndarray:
    return TorchEngine(resolve(name, weights=path), "cpu")(PIXELS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_file(WEIGHTS, path)
    return rows(path)


def under(prefix: str, state=WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(4, 512), "head.mlp.0.bias": torch.zeros(4)}


@pytest.mark.parametrize(
    "content",
    [
        under("module."),
        under("_orig_mod."),
        under("_orig_mod.module."),
        {**under("backbone."), **HEAD},
        {**under("module.encoder_q."), **under("module.encoder_k."), "module.queue": torch.zeros(9, 9)},
        {"state_dict": under("model."), "epoch": 3, "args": argparse.Namespace(lr=0.1, model="resnet18"),
         "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
         "best": np.float64(0.93), "counts": np.int64(7)},
        {"state_dict": {**under("model."), "loss.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1e-3},
         "callbacks": {"EarlyStopping": {"best_score": torch.tensor(0.5)}}},
        OrderedDict(teacher=under("backbone."), student=under("module.backbone.", models.resnet18().state_dict())),
        {"model": {"state_dict": WEIGHTS}},
    ],
    ids=["parallel", "compiled", "both", "self-supervised", "moco", "timm", "lightning", "dino", "nested"],
)  # fmt: skip
def test_the_networks_own_weights_are_found(tmp_path, content, expected, caplog):
    torch.save(content, tmp_path / "checkpoint.pth")
    with caplog.at_level(logging.INFO, "pipeline"):
        np.testing.assert_array_equal(rows(tmp_path / "checkpoint.pth"), expected)


def test_what_was_taken_and_what_was_left_out_is_told(tmp_path, caplog):
    torch.save({"student": under("module."), "teacher": {**under("backbone."), **HEAD}}, tmp_path / "dino.pth")
    with caplog.at_level(logging.INFO, "pipeline"):
        resolve("resnet18", weights=tmp_path / "dino.pth").network()
    said = "\n".join(caplog.messages)
    assert "'teacher' is taken" in said and "dino.pth[student]" in said
    assert "weights under 'backbone.' are taken; the other 2 tensors are left out" in said


def test_a_part_can_be_chosen_and_is_another_network(tmp_path, expected):
    path = tmp_path / "dino.pth"
    torch.save({"student": models.resnet18().state_dict(), "teacher": WEIGHTS}, path)
    student = resolve("resnet18", weights=f"{path}[student]")
    assert student.spec.sha256 != resolve("resnet18", weights=path).spec.sha256
    assert student.spec.sha256 != resolve("resnet18", weights=f"{path}[teacher]").spec.sha256
    np.testing.assert_array_equal(rows(f"{path}[teacher]"), expected)
    with pytest.raises(UnknownNameError, match=r"part of .*'studnt'\. Did you mean 'student'"):
        resolve("resnet18", weights=f"{path}[studnt]").network()


def test_a_timm_checkpoint_of_its_own_training_script_loads(tmp_path):
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=5)
    torch.save({"arch": "resnet10t", "state_dict": network.state_dict(), "args": argparse.Namespace(lr=np.float32(1)),
                "state_dict_ema": network.state_dict(), "version": 2}, tmp_path / "last.pth.tar")  # fmt: skip
    resolve("timm:resnet10t", weights=tmp_path / "last.pth.tar").network()


def test_a_whole_module_is_refused_with_the_lines_that_convert_it(tmp_path):
    torch.save(NETWORK, tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"torchvision\.models\.resnet\.ResNet.*torch\.save\(model\.state_dict\(\)"):
        resolve("resnet18", weights=tmp_path / "whole.pth").network()


@pytest.mark.parametrize(("content", "what"), [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
                                               (b"<html>403", "a web page"), (b"", "it is empty")])  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_stands_in_the_place_of_weights_is_named(tmp_path, content, what, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=what):
        resolve("resnet18", weights=tmp_path / f"w{suffix}").network()


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize("beside", [Trap(), argparse.Namespace(trap=Trap()), defaultdict(Trap)],
                         ids=["alone", "in arguments", "as a factory"])  # fmt: skip
def test_nothing_beside_the_weights_runs_code(tmp_path, beside):
    torch.save({"state_dict": WEIGHTS, "args": beside}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="run code"):
        resolve("resnet18", weights=tmp_path / "evil.pth").network()


def test_what_does_not_fit_says_how_many_tensors_did_and_which_network_they_are_of(tmp_path):
    torch.save(under("module."), tmp_path / "weights.pth")
    fitting = r"1\d\d of the network's 216 tensors are in the file under 'module\.'\. They fit resnet18: --backbone"
    with pytest.raises(WeightsError, match=fitting):
        resolve("resnet34", weights=tmp_path / "weights.pth").network()
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(WeightsError, match=r"0 of the network's 216 tensors are in the file\.$"):
        resolve("resnet34", weights=tmp_path / "linear.pth").network()
