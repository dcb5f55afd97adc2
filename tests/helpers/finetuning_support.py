"""Two classes of small real photographs, and a real pretrained network that is quick on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.backbones import Backbone, resolve
from pipeline.core.progress import SilentBar
from pipeline.data import Dataset, Transform, load_dataset

COUNTS = {"train": 9, "val": 4, "test": 3}  # images a class
SMALL = Transform(resize=(36, 36), crop=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Compute on one thread: images this small gain nothing from more, and tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_photos(folder: Path) -> Dataset:
    """Cut two photographs, of a temple and of a flower, into tiles: a class each."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for split, count in COUNTS.items():
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                top, left = rng.integers(0, photo.shape[0] - 64), rng.integers(0, photo.shape[1] - 80)
                Image.fromarray(photo[top : top + 64, left : left + 80]).save(place / f"{number:02d}.jpg")
    return load_dataset(str(folder / "photos"), cache_dir=folder / "cache")


def small_backbone() -> Backbone:
    """Return EfficientNet-Lite0 with its ImageNet weights, on images of 32 pixels."""
    return replace(resolve("efficientnet_lite0"), transform=SMALL)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Killed(BaseException):
    """As sudden as a power cut: nothing catches it."""


class DeadlyBar(SilentBar):
    """A progress bar that does something after so many steps."""

    def __init__(self, steps: int, action):
        self.left, self.action = steps, action

    def update(self, n: int = 1) -> None:
        self.left -= n > 0
        if self.left == 0:
            self.action()


def bar_that(steps: int, action, of: str = "finetune"):
    """Return bars of which one does something after so many steps."""
    bars = {of: DeadlyBar(steps, action)}
    return lambda total=None, desc="", unit="": bars.get(desc, SilentBar())


def kill():
    raise Killed
