"""Recorded steps, with a recorder for the CPU: the same training, and no recording that does anything else is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetuning_support import small_backbone, small_photos

from pipeline.finetuning import capture
from pipeline.finetuning.settings import FinetuneSettings
from pipeline.finetuning.training import train

replays = []


def honest(work):
    """What a CUDA graph is, without one: the work again, with its gradients at the same places in memory."""
    for _ in range(capture.WARM):
        work()  # as there, which moves statistics
    work()
    places = []

    def replay():
        replays.append(1)
        work()
        parameters = [each for each in MODEL[0].parameters() if each.grad is not None]
        if not places:
            places.extend(recorded)
        for parameter, place in zip(parameters, places, strict=True):
            place.copy_(parameter.grad)
            parameter.grad = None

    recorded = [each.grad for each in MODEL[0].parameters() if each.grad is not None]
    return replay


def refusing(work):
    work()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def forgetful(work):
    """Replays the gradients of the weights that there were when it recorded."""
    work()
    held = [each.grad.clone() for each in MODEL[0].parameters() if each.grad is not None]
    places = [each.grad for each in MODEL[0].parameters() if each.grad is not None]

    def replay():
        for place, value in zip(places, held, strict=True):
            place.copy_(value)

    return replay


MODEL: list[torch.nn.Module] = []


@pytest.fixture
def recorder(monkeypatch):
    """Have steps recorded on the CPU by what is given."""

    def use(record):
        class Own(capture.Recordings):
            def __init__(self, model, full, _, log):
                MODEL[:] = [model]
                super().__init__(model, full, record, log)

        monkeypatch.setattr("pipeline.finetuning.optimisation.Recordings", Own)

    replays.clear()
    yield use
    MODEL.clear()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_photos(tmp_path_factory.mktemp("capture"))


def trained(dataset, strategy="whole", **settings):
    lines: list[str] = []
    plan = {"epochs": 3, "lr": 0.01, "batch_size": 4, "precision": "float32", "device": "cpu", "select": "last",
            "label_smoothing": 0.1, **settings}
    found = train(dataset, small_backbone(), FinetuneSettings(strategy=strategy, **plan), log=lines.append)
    return found, lines


@pytest.mark.parametrize("strategy", ["whole", "partial", "head-only", "gradual"])
def test_training_is_the_same_to_the_bit(dataset, recorder, strategy):
    expected, lines = trained(dataset, strategy)
    assert not any("graph" in line for line in lines)
    recorder(honest)
    found, lines = trained(dataset, strategy)
    assert lines.count("steps are replayed as a CUDA graph") == 1
    assert len(replays) == (9 if strategy == "gradual" else 11), "full batches, all but the first of each kind"
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name
    np.testing.assert_array_equal(found.weight, expected.weight)
    assert found.history[-1]["train_loss"] == expected.history[-1]["train_loss"]


@pytest.mark.parametrize(("record", "why"), [(refusing, "operation not permitted when stream is capturing"),
                                             (forgetful, "of their length away")])  # fmt: skip
def test_a_recording_that_fails_or_does_something_else_is_not_used_and_told(dataset, recorder, record, why):
    expected, _ = trained(dataset)
    recorder(record)
    found, lines = trained(dataset)
    told = [line for line in lines if "graph" in line]
    assert len(told) == 1 and told[0].startswith("steps are launched one operation at a time") and why in told[0]
    for name, tensor in expected.state.items():
        assert torch.equal(found.state[name], tensor), name


@pytest.mark.parametrize(("settings", "why"), [
    ({"mixup": 0.2}, "images are mixed"), ({"accumulate": 2, "batch_size": 6}, "in parts"),
    ({"batch_size": 65}, "more than 64"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_told(dataset, recorder, settings, why):
    recorder(honest)
    _, lines = trained(dataset, epochs=1, **settings)
    assert [why in line for line in lines if "graph" in line] == [True] and not replays


def test_recordings_give_way_where_memory_is_short(dataset, recorder, monkeypatch):
    recorder(honest)
    part, calls = capture.Recording.__call__, []

    def short(self, *inputs):
        calls.append(1)
        if len(calls) == 6:
            raise torch.OutOfMemoryError("no room")
        return part(self, *inputs)

    monkeypatch.setattr(capture.Recording, "__call__", short)
    found, lines = trained(dataset)
    assert sum("memory on cpu is short" in line for line in lines) == 1
    assert len(found.history) == 3 and not any("parts" in line for line in lines)
