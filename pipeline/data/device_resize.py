"""Resizing on a torch device with Pillow's own pixels: two matrix products an image, one along each side.

Pillow's resize is a weighted sum along the rows, rounded to whole grey levels, then one along the columns
(`Resample.c`). Here each is a batched product in float32, with the weights in two parts so that nothing is rounded
before it is to be: the pixels are Pillow's to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .reader import UnreadableImageError
from .transforms import INTERPOLATIONS, MOST_PIXELS, Transform, _span

if TYPE_CHECKING:
    import torch

PRECISION = 2.0**22  # Pillow keeps weights as integers of 1/PRECISION
COARSE = 2.0**11
TALL = 100  # an image taller than so many widths is resized by Pillow along its columns first: not here


@dataclass(frozen=True)
class Side:
    """What becomes of one side of an image.

    Parameters
    ----------
    start, length : int
        The pixels that are taken (the image is cropped to them first, as `Image.crop` does).
    size : int
        What they are resized to.
    first, last : int
        Those of the result that are kept, `last` not included.
    """

    start: int
    length: int
    size: int
    first: int
    last: int

    @classmethod
    def whole(cls, start: int, length: int, size: int) -> Side:
        """Return a side of which everything is kept."""
        return cls(start, length, size, 0, size)


@dataclass(frozen=True)
class Resizing:
    """How one image comes to its place in the output.

    Parameters
    ----------
    rows, columns : Side
    mirrored : bool
        Left to right, at the end.
    down_first : bool
        Which side is resized first. As each pass rounds, 3 % of the values hang on it, by one level: no matter for
        random crops, but see `resizing_of`.
    """

    rows: Side
    columns: Side
    mirrored: bool = False
    down_first: bool = False


@dataclass(frozen=True)
class Decoded:
    """An image that a device is to resize.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
    resizing : Resizing
    """

    pixels: np.ndarray
    resizing: Resizing

    @property
    def nbytes(self) -> int:
        """Of the pixels."""
        return self.pixels.nbytes


def resizing_of(transform: Transform, height: int, width: int) -> Resizing | None:
    """Return what a transform does to an image of this size, or None where only Pillow does the same.

    Raises
    ------
    UnreadableImageError
        See `Transform.__call__`.
    """
    down, across = transform.resized_size(height, width)
    if down * across > MOST_PIXELS:
        raise UnreadableImageError(f"too elongated to resize: {width} x {height}")
    if height > TALL * width:
        return None
    rows = Side(0, height, down, *_span(down, transform.crop[0]))
    columns = Side(0, width, across, *_span(across, transform.crop[1]))
    # `Transform` resizes such an image in two calls, rows first
    two_calls = transform.fit != "squash" and width >= height and columns.last - columns.first < across
    down_first = not two_calls and _pillow_goes_down_first(height, width, down, across, transform.interpolation)
    return Resizing(rows, columns, down_first=down_first)


@lru_cache(maxsize=4096)
def _pillow_goes_down_first(height: int, width: int, down: int, across: int, interpolation: str) -> bool:
    """Tell by trying which side the installed Pillow resizes first: by which rule changes with its version."""
    if interpolation == "nearest" or height == down or width == across:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    image, method = Image.fromarray(noise), INTERPOLATIONS[interpolation]
    found, first = image.resize((across, down), method), image.resize((width, down), method)
    return found.tobytes() == first.resize((across, down), method).tobytes()


def resized(
    images: Sequence[torch.Tensor] | torch.Tensor,
    resizings: Sequence[Resizing],
    size: tuple[int, int],
    interpolation: str,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> torch.Tensor:
    """Resize images on the device that they are on.

    Parameters
    ----------
    images : N uint8 tensors of shape (H, W, 3), or one of shape (N, H, W, 3)
        Of different sizes; in the one tensor each image begins in the upper left corner, and the rest is ignored.
    resizings : N Resizing
        One an image.
    size : tuple of int
        Height and width of the output; a smaller result is put in its middle.
    interpolation : str
        One of `INTERPOLATIONS`.
    fill : tuple of int
        Colour around a smaller result.

    Returns
    -------
    torch.Tensor
        Shape (N, *size, 3), uint8, on the same device.
    """
    import torch

    batch = images if isinstance(images, torch.Tensor) else _together(images)
    with torch.inference_mode(), _exact_products():
        pixels = batch.new_empty((len(batch), 3, *size))
        for down_first in (False, True):
            chosen = [number for number, each in enumerate(resizings) if each.down_first is down_first]
            if chosen:
                part = batch if len(chosen) == len(batch) else batch[chosen]
                pixels[chosen] = _products(part, [resizings[number] for number in chosen], size, interpolation)
        return _finished(pixels.permute(0, 2, 3, 1), resizings, size, fill).contiguous()


def _products(
    batch: torch.Tensor, resizings: Sequence[Resizing], size: tuple[int, int], interpolation: str
) -> torch.Tensor:  # fmt: skip
    """Return (N, 3, *size) uint8 of a (N, H, W, 3) batch whose images all have the same side resized first."""
    import torch

    down = _weights([each.rows for each in resizings], size[0], batch.shape[1], interpolation, batch.device)[:, None]
    across = _weights([each.columns for each in resizings], size[1], batch.shape[2], interpolation, batch.device)
    across = across.transpose(1, 2)[:, None]
    values = batch.permute(0, 3, 1, 2).to(torch.float32)
    if resizings[0].down_first:
        return _along_rows(_along_columns(values, down), across).to(torch.uint8)
    return _along_columns(_along_rows(values, across), down).to(torch.uint8)


def _together(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return images of different sizes in one tensor, each in the upper left corner."""
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    batch = images[0].new_zeros((len(images), height, width, 3))
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch


def _along_rows(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    coarse, fine = _parts(weights)
    return _levels(values @ coarse, values @ fine)


def _along_columns(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    coarse, fine = _parts(weights)
    return _levels(coarse @ values, fine @ values)


def _parts(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split weights into multiples of 1/COARSE and the rest: sums of products of either with bytes fit 24 bits."""
    coarse = (weights * COARSE).round_().div_(COARSE)
    return coarse, weights - coarse


def _levels(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Round the sum of both to whole grey levels, halves up, as Pillow does after each of its passes."""
    coarse.add_(0.5)
    whole = coarse.floor()
    return whole.add_(coarse.sub_(whole).add_(fine).floor_()).clamp_(0, 255)


def _finished(
    pixels: torch.Tensor, resizings: Sequence[Resizing], size: tuple[int, int], fill: tuple[int, int, int]
) -> torch.Tensor:
    """Mirror what is to be, and paint what lies around smaller results."""
    import torch

    if mirrored := [number for number, each in enumerate(resizings) if each.mirrored]:
        pixels[mirrored] = pixels[mirrored].flip(2)
    if not any(fill):
        return pixels  # where no weight points, the sum is 0
    colour = torch.tensor(fill, dtype=torch.uint8, device=pixels.device)
    for image, each in zip(pixels, resizings, strict=True):
        (top, bottom), (left, right) = _place(each.rows, size[0]), _place(each.columns, size[1])
        if each.mirrored:
            left, right = size[1] - right, size[1] - left
        for border in (image[:top], image[bottom:], image[:, :left], image[:, right:]):
            border[:] = colour
    return pixels


def _place(side: Side, size: int) -> tuple[int, int]:
    """Return where in an output of `size` the kept pixels of a side lie: in the middle."""
    kept = side.last - side.first
    first = (size - kept) // 2
    return first, first + kept


def _weights(
    sides: Sequence[Side], size: int, padded: int, interpolation: str, device: torch.device
) -> torch.Tensor:  # fmt: skip
    """Return (N, size, padded) float32: what each pixel of the images counts for each pixel of the results."""
    import torch

    each = [_matrix(side, size, padded, interpolation, device) for side in sides]
    return torch.stack(each) if len(set(sides)) > 1 else each[0].expand(len(each), -1, -1)


@lru_cache(maxsize=512)
def _matrix(side: Side, size: int, padded: int, interpolation: str, device: torch.device) -> torch.Tensor:
    """Return the weights of one side, (size, padded), on the device: photographs come in few sizes."""
    import torch

    pixels, weights = _taps(side.length, side.size, interpolation)
    first, last = _place(side, size)
    kept, dense = slice(side.first, side.last), np.zeros((size, padded), np.float32)
    # no pixel has two weights that are not 0, so that the order of adding is all the same
    np.add.at(dense, (np.arange(first, last)[:, None], pixels[kept] + side.start), weights[kept])
    return torch.from_numpy(dense).to(device)


@lru_cache(maxsize=4096)
def _taps(length: int, size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `length` pixels make up each of `size`, and with which weights: (size, k) int64 and float32.

    As `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's `Resample.c`, and `ImagingScaleAffine` for nearest.
    """
    if interpolation == "nearest":
        steps = np.full(size, length / size)
        steps[0] /= 2
        pixels = np.cumsum(steps).astype(np.int64)  # Pillow adds up, too, with the same roundings
        return np.minimum(pixels, length - 1)[:, None], np.ones((size, 1), np.float32)
    kernel, support = _KERNELS[interpolation]
    scale = length / size
    stretch = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support * stretch + 0.5).astype(np.int64), length)
    pixels = first[:, None] + np.arange(int((last - first).max()))
    # divided by multiplying with the inverse, as there: the borders of `box` depend on it
    weights = kernel((pixels - centre[:, None] + 0.5) * (1.0 / stretch)) * (pixels < last[:, None])
    weights /= weights.sum(1, keepdims=True)
    weights = np.trunc(weights * PRECISION + np.copysign(0.5, weights)) / PRECISION
    return np.minimum(pixels, length - 1), weights.astype(np.float32)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


_054, _046 = float(np.float32(0.54)), float(np.float32(0.46))  # in single precision there, too


def _hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (_054 + _046 * np.cos(np.pi * x)), 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


# each with how far it reaches
_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "box": (_box, 0.5), "bilinear": (_bilinear, 1.0), "hamming": (_hamming, 1.0), "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}  # fmt: skip


@contextmanager
def _exact_products() -> Iterator[None]:
    """Multiply in float32 whatever the network may do: TF32's ten bits do not hold the weights."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
