"""A network that a program has in its hands: cached, trained on and fine-tuned as any other, under its own weights."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

import pipeline
from pipeline.core.errors import PipelineError

TRANSFORM = pipeline.Transform(resize=(72, 72), crop=(64, 64))


class Small(nn.Module):
    """With control flow, which no tracer follows."""

    def __init__(self, features: int = 24):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 7, 4), nn.Conv2d(16, features, 3, 2)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.first(images))
        if maps.mean() > 1e9:
            maps = maps * 2
        return torch.relu(self.norm(self.second(maps))).mean((2, 3))


@pytest.fixture
def module() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def data(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, colour in (("dark", 60), ("light", 190)):
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 30, (80, 90, 3)), 0, 255).astype(np.uint8)
                (tmp_path / "data" / split / label).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{number}.png")
    return "data"


def test_its_rows_are_its_outputs_and_are_computed_once(data, module):
    backbone = pipeline.own_backbone(module, TRANSFORM, "small")
    done = pipeline.extract(data, backbone)
    assert done.computed == 22 and pipeline.extract(data, "own:small").computed == 0
    with done.open() as cache, torch.inference_mode():
        for row, path in zip(cache.read_rows(), cache.paths, strict=True):
            pixels = torch.tensor(TRANSFORM(Image.open(f"data/{path}").convert("RGB"))).permute(2, 0, 1) / 255
            mean, std = (torch.tensor(values)[:, None, None] for values in (TRANSFORM.mean, TRANSFORM.std))
            np.testing.assert_allclose(module(((pixels - mean) / std)[None])[0], row, atol=1e-4)


def test_changed_weights_or_other_code_are_another_backbone(data, module):
    before = pipeline.own_backbone(module, TRANSFORM, "small").spec
    with torch.no_grad():
        module.first.weight[0, 0, 0, 0] += 1
    assert pipeline.own_backbone(module, TRANSFORM, "small").spec != before
    with torch.no_grad():
        module.first.weight[0, 0, 0, 0] -= 1
    again = pipeline.own_backbone(module, TRANSFORM, "small").spec
    other = type("Other", (Small,), {})()
    other.load_state_dict(module.state_dict())
    assert pipeline.own_backbone(other, TRANSFORM, "small").spec != again


def test_later_changes_of_the_module_do_not_reach_the_backbone(data, module):
    backbone = pipeline.own_backbone(module, TRANSFORM, "small")
    first = backbone.network()(torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        module.first.bias.add_(1)
    assert torch.equal(backbone.network()(torch.zeros(1, 3, 64, 64)), first)


def test_heads_fine_tuning_and_prediction_work_with_it(data, module):
    backbone = pipeline.own_backbone(module, TRANSFORM, "small")
    pipeline.extract(data, backbone)
    run = pipeline.train_head("logistic", data, backbone)
    assert run.metrics["splits"]["val"]["accuracy"] == 1
    tuned = pipeline.finetune(data, backbone, epochs=1)
    for one in (run, tuned):
        found = pipeline.predict(["data/val/dark/0.png", "data/val/light/0.png"], run=one)
        assert [each.label for each in found] == ["dark", "light"]


def test_another_process_is_told_what_to_do(data, module):
    pipeline.finetune(data, pipeline.own_backbone(module, TRANSFORM, "small"), epochs=1, name="tuned")
    shutil.rmtree("cache/engines", ignore_errors=True)  # where prepared networks are kept
    done = subprocess.run([sys.executable, "-m", "pipeline", "predict", "data/val", "--run", "tuned"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "pipeline.own_backbone(module, transform, 'small') makes it known" in done.stderr


def test_transforms_of_the_libraries_are_understood_and_others_refused(module):
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    assert pipeline.own_backbone(module, preset).transform.crop == (224, 224)
    config = {"input_size": (3, 96, 96), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3,
              "crop_pct": 0.9, "crop_mode": "center"}  # fmt: skip
    assert pipeline.own_backbone(module, config).transform.crop == (96, 96)
    with pytest.raises(PipelineError, match="cannot be function"):
        pipeline.own_backbone(module, lambda image: image)
    with pytest.raises(PipelineError, match="has no weights"):
        pipeline.own_backbone(nn.Identity(), TRANSFORM)
    with pytest.raises(PipelineError, match=r"own_backbone\(module, transform, 'nobody'\)"):
        pipeline.resolve("own:nobody")


def test_a_layer_of_any_network_can_be_read(data):
    backbone = pipeline.own_backbone(models.squeezenet1_1(weights=None), TRANSFORM, "squeeze", "features.3:mean")
    assert pipeline.extract(data, backbone).open().shape == (22, 128)
