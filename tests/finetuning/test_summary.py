"""The layer table has the published figures, and those of the training that it foretells."""

from __future__ import annotations

import json

import pytest
import torch
from finetuning_support import one_thread, small_backbone, small_photos  # noqa: F401

from pipeline.cli import main
from pipeline.core.errors import PipelineError, UnknownNameError
from pipeline.finetuning import FinetuneSettings, train
from pipeline.finetuning.summary import summarise


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch):
    def refuse(*args):
        raise AssertionError("a summary needs no weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_frozen_vgg16_with_two_classes_has_the_published_totals():
    found = summarise("vgg16", "avgpool")
    assert (found.parameters, found.trainable) == (14_764_866, 50_178)
    rows = {row.layer: row for row in found.rows}
    assert (rows["features.0"].output, rows["features.0"].parameters) == ((64, 224, 224), 1_792)
    assert rows["avgpool"].output == (512, 7, 7)
    assert (rows["head"].output, rows["head"].multiply_adds) == ((2,), 25_088 * 2)
    assert not any(name.startswith("classifier") for name in rows)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_b0", "vit_b_16", "swin_t", "googlenet"])
def test_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name):
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT.meta
    found = summarise(name, classes=1000, settings=FinetuneSettings())
    assert found.parameters == found.trainable == published["num_params"]
    assert round(found.multiply_adds / 1e9, 3) == published["_ops"]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_b_16"])
def test_every_depth_adds_up_to_the_same(name):
    settings = FinetuneSettings(strategy="partial")
    shallow, deep = (summarise(name, settings=settings, depth=depth) for depth in (1, 9))
    assert len(shallow.rows) < len(deep.rows)
    for total in ("parameters", "trainable", "multiply_adds", "activation_bytes"):
        assert getattr(shallow, total) == getattr(deep, total) > 0


def test_a_layer_in_the_middle_ends_the_work_there():
    found = summarise("resnet18", "layer2.0.conv1", depth=3)
    names = [row.layer for row in found.rows if row.output]
    assert names[-2:] == ["layer2.0.conv1", "head"]
    assert found.rows[-1].parameters == 2 * (128 * 28 * 28 + 1)
    assert found.multiply_adds == summarise("resnet18", "layer2.0.conv1", depth=1).multiply_adds


@pytest.mark.parametrize(("strategy", "unfreeze"), [("head-only", "half"), ("partial", "last-2"), ("gradual", "half")])
def test_trainable_is_what_a_training_reports(strategy, unfreeze, tmp_path):
    settings = FinetuneSettings(strategy=strategy, unfreeze=unfreeze, epochs=1, precision="float32")
    trained = train(small_photos(tmp_path), small_backbone(), settings)
    assert summarise("efficientnet_lite0", settings=settings).trainable == trained.trainable_parameters


def test_the_command_prints_a_row_a_layer_and_the_same_as_json(capsys):
    assert main(["summary", "--backbone", "vgg16", "--layer", "avgpool"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["features.0", "Conv2d", "64", "x", "224", "x", "224", "1,792", "86,704,128"]
    assert "14,764,866 parameters (59.1 MB in float32), 50,178 of them trained with head-only" in lines
    assert main(["summary", "--backbone", "vgg16", "--layer", "avgpool", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["trainable"], len(found["rows"])) == (14_764_866, 50_178, 33)


def test_what_cannot_be_is_said():
    with pytest.raises(UnknownNameError, match=r"layer 'avgpol'\. Did you mean 'avgpool'"):
        summarise("vgg16", "avgpol")
    with pytest.raises(PipelineError, match="classes is 0; it must be 1 or more"):
        summarise("vgg16", classes=0)


def test_auto_is_the_block_that_finetune_would_take():
    from pipeline.finetuning import FinetuneSettings

    settings = FinetuneSettings(strategy="partial", unfreeze="auto")
    trained = [row.layer for row in summarise("efficientnet_lite0", settings=settings).rows if row.trainable]
    assert trained[0] == "blocks.10" and trained[-1] == "head"
