"""Random views of training images; every draw comes from the generator that the caller passes.

An entry of `AUGMENTATIONS` takes the network's `Transform`, which knows the size and interpolation, and gives a
callable: ``augment(image, rng)`` returns uint8 pixels of shape (height, width, 3), not yet normalised. The same
image and generator state give the same pixels, in whatever thread or process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..registry import Registry
from .transforms import INTERPOLATIONS, Transform

Augmentation = Callable[[Image.Image, np.random.Generator], np.ndarray]

AUGMENTATIONS: Registry[Callable[[Transform], Augmentation]] = Registry("augmentation")


@dataclass(frozen=True)
class Plain:
    """No augmentation: what the network sees when it is evaluated."""

    transform: Transform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return self.transform(image)


@dataclass(frozen=True)
class CropAndFlip:
    """A random part of the image, resized to the network's input, and flipped half the time.

    Parameters
    ----------
    transform : Transform
        Gives size and interpolation.
    scale : tuple of float
        Least and greatest share of the image's area.
    ratio : tuple of float
        Least and greatest ratio of width to height, drawn uniformly on a logarithmic scale.
    then : str
        A policy of `torchvision.transforms.v2` applied afterwards; empty for none.
    """

    transform: Transform
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    then: str = ""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = crop_box(image.height, image.width, rng, self.scale, self.ratio)
        part = image.crop((left, top, left + width, top + height))
        size, method = self.transform.crop[::-1], INTERPOLATIONS[self.transform.interpolation]
        view = _flip(part.resize(size, method), Image.Transpose.FLIP_LEFT_RIGHT, rng)
        return np.asarray(_policy(self.then, view, rng) if self.then else view)


@dataclass(frozen=True)
class Flips:
    """The plain view, flipped left to right half the time and upside down half the time."""

    transform: Transform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        view = Image.fromarray(self.transform(image))
        view = _flip(view, Image.Transpose.FLIP_LEFT_RIGHT, rng)
        return np.asarray(_flip(view, Image.Transpose.FLIP_TOP_BOTTOM, rng))


AUGMENTATIONS["none"] = Plain
AUGMENTATIONS["tutorial"] = CropAndFlip
AUGMENTATIONS["cifar"] = Flips
AUGMENTATIONS["trivial-augment"] = lambda transform: CropAndFlip(transform, then="TrivialAugmentWide")
AUGMENTATIONS["rand-augment"] = lambda transform: CropAndFlip(transform, then="RandAugment")


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a part of an image, distributed as torchvision's RandomResizedCrop.

    Ten attempts; an image so elongated that none fits gives the largest centred part with a permitted ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            top, left = rng.integers(0, height - down + 1), rng.integers(0, width - across + 1)
            return int(top), int(left), down, across
    across, down = width, height
    if width / height < ratio[0]:
        down = round(width / ratio[0])
    elif width / height > ratio[1]:
        across = round(height * ratio[1])
    return (height - down) // 2, (width - across) // 2, down, across


def _flip(image: Image.Image, how: Image.Transpose, rng: np.random.Generator) -> Image.Image:
    return image.transpose(how) if rng.random() < 0.5 else image


def _policy(name: str, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    from torchvision.transforms import v2

    with _drawing_from(rng):
        return getattr(v2, name)()(image)


def _drawing_from(rng: np.random.Generator) -> AbstractContextManager:
    """Let torch, in this thread, draw from a generator of its own seeded by `rng`.

    torchvision's policies take no generator and draw from the one of the process, which dropout draws from at the
    same time, in another thread.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))

    class Drawing(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            own = {"generator": generator} if func in (torch.rand, torch.randint) else {}
            return func(*args, **(kwargs or {}), **own)

    return Drawing()
