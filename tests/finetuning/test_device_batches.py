"""Batches augmented on an accelerator, with the CPU as the device: the images that the processor's way gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbones import resolve
from pipeline.data import load_dataset
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.finetuning.batches import Decoder, grouped
from pipeline.finetuning.device_batches import DeviceDecoder, _side_by_side
from pipeline.finetuning.settings import FinetuneSettings
from pipeline.finetuning.training import train

TRANSFORM = resolve("efficientnet_lite0").transform


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Photograph-like images of several sizes in two classes; one broken, one large, one elongated."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(14):
        place = root / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        height, width = (900, 800) if number == 5 else (1300, 12) if number == 8 else rng.integers(120, 400, 2).tolist()
        noise = rng.integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(place / f"{number:02}.jpg")
    (root / "a" / "broken.jpg").write_bytes(b"broken")
    return load_dataset(str(root), cache_dir=root.parent / "cache")


def batches_of(decoder: Decoder, augmentation: str) -> list:
    groups = grouped(np.arange(len(decoder.dataset)), 4)
    return list(decoder.batches(groups, augmentation, (7, 1)))


@pytest.mark.parametrize("memory", [0.0, 0.5])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_they_hold_what_the_processors_way_draws(dataset, augmentation, memory):
    usual, device = Decoder(dataset, TRANSFORM), DeviceDecoder(torch.device("cpu"), dataset, TRANSFORM, 2, memory)
    for _ in range(2):  # decoded, and kept
        for expected, found in zip(batches_of(usual, augmentation), batches_of(device, augmentation), strict=True):
            np.testing.assert_array_equal(found.indices, expected.indices)
            apart = np.abs(found.inputs.numpy().astype(int) - expected.inputs.numpy().astype(int))
            assert apart.max() <= 2 and (apart > 0).mean() < 0.05
            if AUGMENTATIONS[augmentation](TRANSFORM).resizing(100, 100, np.random.default_rng(0)) is None or (
                    augmentation in ("none", "flip", "cifar")):  # fmt: skip
                assert apart.max() == 0
    assert device.failures.keys() == usual.failures.keys() and len(device.failures) == 1


def test_memory_is_bounded_whatever_lies_side_by_side_and_what_cannot_be_resized_is_left_out(tmp_path):
    for number, size in enumerate([(5000, 100), (100, 5000), (300, 200), (100, 5000), (60_000, 1)]):
        Image.new("RGB", size, (number * 40, 90, 30)).save(tmp_path / f"{number}.png")
    odd = load_dataset(str(tmp_path), cache_dir=tmp_path / "cache")
    assert _side_by_side({0: (100, 5000, 3), 1: (5000, 100, 3), 4: (300, 200, 3)}) == [[0], [1], [4]]
    assert _side_by_side({0: (300, 200, 3), 2: (200, 300, 3)}) == [[0, 2]]
    for augmentation in ("none", "flip", "cifar"):
        usual, device = Decoder(odd, TRANSFORM), DeviceDecoder(torch.device("cpu"), odd, TRANSFORM, 1)
        (expected, *_), (found, *_) = batches_of(usual, augmentation), batches_of(device, augmentation)
        assert torch.equal(found.inputs, expected.inputs)
        assert device.failures == usual.failures and "too elongated" in device.failures[4]


def test_images_stay_on_the_device_and_nowhere_else_while_there_is_room(dataset):
    decoder = DeviceDecoder(torch.device("cpu"), dataset, TRANSFORM, 2, 0.5)
    batches_of(decoder, "tutorial")
    assert len(decoder._there) == 13, "all but the large one"
    assert list(decoder._kept) == [(dataset.paths.index("b/05.jpg"), False)]
    views = batches_of(decoder, "none")
    assert sum(plain for _, plain in decoder._there) == 14
    read = dataset.__class__.read
    try:
        dataset.__class__.read = None  # whoever reads now fails
        again = batches_of(decoder, "none")
    finally:
        dataset.__class__.read = read
    for one, other in zip(views, again, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    decoder._room_there = 0
    decoder._there.clear()
    batches_of(decoder, "tutorial")
    assert not decoder._there


def test_training_on_them_learns_as_on_the_processors(dataset, monkeypatch):
    settings = FinetuneSettings(epochs=2, batch_size=4, device="cpu", precision="float32", strategy="head-only",
                                select="last", lr=0.01)  # fmt: skip
    backbone = resolve("efficientnet_lite0")
    usual = train(dataset, backbone, settings)
    made = []
    monkeypatch.setattr("pipeline.finetuning.device_batches.Decoder",
                        lambda *words: made.append(DeviceDecoder(torch.device("cpu"), *words)) or made[-1])
    found = train(dataset, backbone, settings)
    assert made and made[0]._there
    assert np.linalg.norm(found.weight - usual.weight) < 0.03 * np.linalg.norm(usual.weight)
    assert [line["train_loss"] for line in found.history] == pytest.approx(
        [line["train_loss"] for line in usual.history], rel=1e-3)


def test_a_folder_is_not_needed_any_more_once_all_is_there(tmp_path):
    for number in range(4):
        Image.effect_noise((80, 90), 50).convert("RGB").save(tmp_path / f"{number}.png")
    small = load_dataset(str(tmp_path), cache_dir=tmp_path / "cache")
    decoder = DeviceDecoder(torch.device("cpu"), small, TRANSFORM, 1, 0.5)
    first = batches_of(decoder, "tutorial")
    for file in Path(tmp_path).glob("*.png"):
        file.unlink()
    for one, other in zip(first, batches_of(decoder, "tutorial"), strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    assert not decoder.failures
