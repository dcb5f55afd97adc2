"""Random views of images: drawn anew while training, or cached beside the plain image and always the same ones.

An entry of `AUGMENTATIONS` takes the network's `Transform`, which knows the size and interpolation, and gives a
callable: ``augment(image, rng)`` returns uint8 pixels of shape (height, width, 3), not yet normalised. The same image
and generator state give the same pixels, in whatever thread or process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..core.errors import PipelineError
from ..core.registry import Registry
from .device_resize import Resizing, Side, resizing_of
from .digests import DIGEST_BYTES
from .transforms import INTERPOLATIONS, Transform


class Augmentation(Protocol):
    """A random view of an image."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return an image's view, (H, W, 3) uint8."""

    def resizing(self, height: int, width: int, rng: np.random.Generator) -> Resizing | None:
        """Return the view of an image of this size for a device that resizes, drawn as the call draws it; None where
        it is more than a part, resized and turned."""


AUGMENTATIONS: Registry[Callable[[Transform], Augmentation]] = Registry("augmentation")
DEFAULT_AUGMENTATION = "tutorial"
RULE = 1  # how draws follow from content, view and seed; part of the spec


@dataclass(frozen=True)
class Plain:
    """No augmentation: what the network sees when it is evaluated."""

    transform: Transform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return self.transform(image)

    def resizing(self, height: int, width: int, rng: np.random.Generator) -> Resizing | None:
        return resizing_of(self.transform, height, width)


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

    def resizing(self, height: int, width: int, rng: np.random.Generator) -> Resizing | None:
        if self.then:
            return None
        top, left, down, across = crop_box(height, width, rng, self.scale, self.ratio)
        rows, columns = Side.whole(top, down, self.transform.crop[0]), Side.whole(left, across, self.transform.crop[1])
        return Resizing(rows, columns, mirrored=rng.random() < 0.5)


@dataclass(frozen=True)
class Flips:
    """The plain view, flipped left to right half the time and upside down half the time."""

    transform: Transform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        view = Image.fromarray(self.transform(image))
        view = _flip(view, Image.Transpose.FLIP_LEFT_RIGHT, rng)
        return np.asarray(_flip(view, Image.Transpose.FLIP_TOP_BOTTOM, rng))

    def resizing(self, height: int, width: int, rng: np.random.Generator) -> Resizing | None:
        plain = resizing_of(self.transform, height, width)
        return plain and replace(plain, mirrored=rng.random() < 0.5, upside_down=rng.random() < 0.5)


@dataclass(frozen=True)
class Flip:
    """The plain view, mirrored half the time. As a cached view, always: there is one besides the plain one."""

    transform: Transform

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        plain = self.transform(image)
        return self.mirrored(plain) if rng.random() < 0.5 else plain

    def resizing(self, height: int, width: int, rng: np.random.Generator) -> Resizing | None:
        plain = resizing_of(self.transform, height, width)
        return plain and replace(plain, mirrored=rng.random() < 0.5)

    @staticmethod
    def mirrored(plain: np.ndarray) -> np.ndarray:
        """Return a view (H, W, 3) with left and right exchanged."""
        return np.ascontiguousarray(plain[:, ::-1])


AUGMENTATIONS["none"] = Plain
AUGMENTATIONS["flip"] = Flip
AUGMENTATIONS["tutorial"] = CropAndFlip
AUGMENTATIONS["cifar"] = Flips
AUGMENTATIONS["trivial-augment"] = lambda transform: CropAndFlip(transform, then="TrivialAugmentWide")
AUGMENTATIONS["rand-augment"] = lambda transform: CropAndFlip(transform, then="RandAugment")
OURS = frozenset(AUGMENTATIONS)  # which every process knows


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


@dataclass(frozen=True)
class Views:
    """How many views of each image there are, and how those beyond the plain one are drawn.

    View 0 is what the network sees when it is evaluated; views 1 to ``count - 1`` are augmented. What is drawn for a
    view depends on the image file's content, the number of the view and the seed, and on nothing else: not on split,
    order, workers or batches. Every image has all of its views, whatever its split: a row does not know its split, so
    re-splitting computes nothing, and predictions of held-out images can be averaged over views.

    Parameters
    ----------
    count : int
        V, the views of each image, the plain one included.
    augmentation : str
        A name in `AUGMENTATIONS` other than ``none``. Without meaning, as is the seed, where there is one view.
    seed : int

    Raises
    ------
    PipelineError
        If there is no such number of views, seed or augmentation, or it would only repeat the plain view.
    """

    count: int = 1
    augmentation: str = DEFAULT_AUGMENTATION
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("count", 1, 1000), ("seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                what = "number of views" if name == "count" else "seed of the views"
                raise PipelineError(f"The {what} is {value!r}; it must be a whole number from {least} to {most:,}.")
        AUGMENTATIONS[self.augmentation]
        if self.count == 1:  # equal views have equal fields
            object.__setattr__(self, "augmentation", DEFAULT_AUGMENTATION)
            object.__setattr__(self, "seed", 0)
        elif self.augmentation == "flip":
            object.__setattr__(self, "seed", 0)
            if self.count > 2:
                raise PipelineError(f"{self.count} views with augmentation 'flip': there are two, the plain one and "
                                    "its mirror image.")
        elif self.augmentation == "none":
            others = ", ".join(name for name in AUGMENTATIONS if name != "none")
            raise PipelineError(f"{self.count} views with augmentation 'none' would all be the plain one. Take another "
                                f"({others}), or leave the views out.")

    def __call__(self, image: Image.Image, content: bytes, transform: Transform) -> np.ndarray:
        """Return all views of an image.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB.
        content : bytes
            The image file that it came from.
        transform : Transform

        Returns
        -------
        (V, H, W, 3) uint8 array
        """
        plain = transform(image)
        if self.count == 1:
            return plain[None]
        augment = AUGMENTATIONS[self.augmentation](transform)
        if isinstance(augment, Flip):
            return np.stack([plain, augment.mirrored(plain)])
        digest = int.from_bytes(hashlib.sha256(content).digest()[:DIGEST_BYTES], "big")
        further = [augment(image, np.random.default_rng((self.seed, view, digest))) for view in range(1, self.count)]
        return np.stack([plain, *further])

    @property
    def label(self) -> str:
        """What is not as usual, for people; empty where there is one view."""
        if self.count == 1:
            return ""
        augmentation = self.augmentation if self.augmentation != DEFAULT_AUGMENTATION else ""
        return " ".join(filter(None, (f"{self.count} views", augmentation, f"seed {self.seed}" if self.seed else "")))

    @property
    def flags(self) -> list[str]:
        """The command line's words that ask for these views; none where there is one view."""
        usual, flags = Views(2), {"--augmentation": "augmentation", "--view-seed": "seed"}
        changed = [word for flag, name in flags.items() if getattr(self, name) != getattr(usual, name)
                   for word in (flag, str(getattr(self, name)))]
        return ["--views", str(self.count), *changed] if self.count > 1 else []

    def to_dict(self) -> dict[str, Any]:
        """Return what `Views` takes to make this again; empty where there is one view."""
        return {} if self.count == 1 else {field.name: getattr(self, field.name) for field in fields(self)}

    def described(self, transform: Transform) -> dict[str, Any]:
        """Return everything that decides the further views, for a cache's spec; empty where there is one view."""
        if self.count == 1:
            return {}
        settings = {name: value for name, value in vars(AUGMENTATIONS[self.augmentation](transform)).items()
                    if name != "transform"}
        return {**self.to_dict(), "augmentation": {"name": self.augmentation, **settings}, "rule": RULE}


PLAIN = Views()
