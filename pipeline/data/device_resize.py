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

from .files import UnreadableImageError
from .transforms import INTERPOLATIONS, MOST_PIXELS, Transform, span_of_crop

if TYPE_CHECKING:
    import torch

PRECISION = 2.0**22  # Pillow keeps weights as integers of 1/PRECISION
COARSE = 2.0**11
MOST_MET = 65536  # sizes that are remembered
TALL = 100  # an image taller than so many widths is resized by Pillow along its columns first: not here

_met = set[tuple[int, int, int, int, str]]()


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
    mirrored, upside_down : bool
        At the end.
    down_first : bool
        Which side is resized first. As each pass rounds, 3 % of the values hang on it, by a level or two: no matter for
        random crops, but see `resizing_of`.
    """

    rows: Side
    columns: Side
    mirrored: bool = False
    down_first: bool = False
    upside_down: bool = False


@dataclass(frozen=True)
class Encoded:
    """A JPEG file that a device is to decode, turn and resize.

    Parameters
    ----------
    content : bytes
    orientation : int
        1 to 8, as in EXIF.
    resizing : Resizing
        Of the image once it is upright.
    decoded : callable
        Returns the image as decoded without the others of its batch, see `Backbone.decoded`.
    """

    content: bytes
    orientation: int
    resizing: Resizing
    decoded: Callable[[], np.ndarray | Decoded]

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return len(self.content)


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


Taps = tuple[np.ndarray, np.ndarray]
Empty = Callable[[tuple[int, ...], str], np.ndarray]
Ready = np.ndarray | Decoded | Encoded
"""What there is of an image: its views, (V, H, W, 3) uint8, or what the device is to make them from."""


def resizing_of(transform: Transform, height: int, width: int, at_once: bool = True) -> Resizing | None:
    """Return what a transform does to an image of this size, or None where only Pillow does the same.

    Not `at_once`: also where it would have to be found out by trying, and this size is met for the first time. To try
    takes longer than to resize one image, and of some data no two images have the same size.

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
    rows = Side(0, height, down, *span_of_crop(down, transform.crop[0]))
    columns = Side(0, width, across, *span_of_crop(across, transform.crop[1]))
    # `Transform` resizes such an image in two calls, rows first
    two_calls = transform.fit != "squash" and width >= height and columns.last - columns.first < across
    sides = height, width, down, across, transform.interpolation
    if not two_calls and not at_once and _is_new(sides):
        return None
    down_first = not two_calls and _pillow_goes_down_first(*sides)
    return Resizing(rows, columns, down_first=down_first)


def _is_new(sides: tuple[int, int, int, int, str]) -> bool:
    """Tell whether this is asked for the first time."""
    if sides in _met:
        return False
    if len(_met) >= MOST_MET:
        _met.clear()
    _met.add(sides)
    return True


@lru_cache(maxsize=4096)
def _pillow_goes_down_first(height: int, width: int, down: int, across: int, interpolation: str) -> bool:
    """Tell by trying which side the installed Pillow resizes first: by which rule changes with its version."""
    if interpolation == "nearest" or height == down or width == across:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    image, method = Image.fromarray(noise), INTERPOLATIONS[interpolation]
    found, first = image.resize((across, down), method), image.resize((width, down), method)
    return found.tobytes() == first.resize((across, down), method).tobytes()


@dataclass(frozen=True)
class Plan:
    """What resizing a batch takes: made by whoever decodes, so that the thread of the device need not.

    Parameters
    ----------
    resizings : sequence of Resizing
        One an image.
    size : tuple of int
        Height and width of the output; a smaller result is put in its middle.
    rows, columns : pair of arrays
        See `_taps_of`.
    """

    resizings: Sequence[Resizing]
    size: tuple[int, int]
    rows: Taps
    columns: Taps

    @classmethod
    def of(
        cls, resizings: Sequence[Resizing], size: tuple[int, int], interpolation: str, empty: Empty = np.empty
    ) -> Plan:  # fmt: skip
        """Return the plan for images that are resized in these ways; its arrays are made by `empty`."""
        return cls(resizings, size, _taps_of([each.rows for each in resizings], size[0], interpolation, empty),
                   _taps_of([each.columns for each in resizings], size[1], interpolation, empty))

    def part(self, which: slice) -> Plan:
        """Return the plan for some of the images."""
        (pixels, weights), (others, other_weights) = self.rows, self.columns
        return Plan(self.resizings[which], self.size, (pixels[which], weights[which]),
                    (others[which], other_weights[which]))


def resized(
    images: Sequence[torch.Tensor] | torch.Tensor, plan: Plan, fill: tuple[int, int, int] = (0, 0, 0)
) -> torch.Tensor:  # fmt: skip
    """Resize images on the device that they are on.

    Parameters
    ----------
    images : N uint8 tensors of shape (H, W, 3), or one of shape (N, H, W, 3)
        Of different sizes; in the one tensor each image begins in the upper left corner, and the rest is ignored.
    plan : Plan
        For these N.
    fill : tuple of int
        Colour around a smaller result.

    Returns
    -------
    torch.Tensor
        Shape (N, *plan.size, 3), uint8, on the same device.
    """
    import torch

    batch = images if isinstance(images, torch.Tensor) else _together(images)
    orders = {each.down_first for each in plan.resizings}
    with torch.inference_mode(), _exact_products():
        if len(orders) == 1:
            pixels = _products(batch, plan, slice(None), orders.pop())
        else:
            pixels = batch.new_empty((len(batch), 3, *plan.size))
            for down_first in (False, True):
                chosen = [number for number, each in enumerate(plan.resizings) if each.down_first is down_first]
                pixels[chosen] = _products(batch[chosen], plan, chosen, down_first)
        return _finished(pixels.permute(0, 2, 3, 1), plan.resizings, plan.size, fill).contiguous()


def _products(batch: torch.Tensor, plan: Plan, which: slice | list[int], down_first: bool) -> torch.Tensor:
    """Return (N, 3, *size) uint8 of a (N, H, W, 3) batch whose images all have the same side resized first."""
    import torch

    down = _dense(plan.rows, which, batch.shape[1], batch.device)[:, None]
    across = _dense(plan.columns, which, batch.shape[2], batch.device).transpose(1, 2)[:, None]
    values = batch.permute(0, 3, 1, 2).to(torch.float32)
    if down_first:
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
    """Mirror and turn what is to be, and paint what lies around smaller results."""
    import torch

    for side, name in ((2, "mirrored"), (1, "upside_down")):
        if turned := [number for number, each in enumerate(resizings) if getattr(each, name)]:
            pixels[turned] = pixels[turned].flip(side)
    if not any(fill):
        return pixels  # where no weight points, the sum is 0
    colour = torch.tensor(fill, dtype=torch.uint8, device=pixels.device)
    for image, each in zip(pixels, resizings, strict=True):
        (top, bottom), (left, right) = _place(each.rows, size[0]), _place(each.columns, size[1])
        if each.mirrored:
            left, right = size[1] - right, size[1] - left
        if each.upside_down:
            top, bottom = size[0] - bottom, size[0] - top
        for border in (image[:top], image[bottom:], image[:, :left], image[:, right:]):
            border[:] = colour
    return pixels


def _place(side: Side, size: int) -> tuple[int, int]:
    """Return where in an output of `size` the kept pixels of a side lie: in the middle."""
    kept = side.last - side.first
    first = (size - kept) // 2
    return first, first + kept


def _taps_of(
    sides: Sequence[Side], size: int, interpolation: str, empty: Empty
) -> Taps:  # fmt: skip
    """Return which pixels of the images make up each of the results, (N, size, k) int32, and with which weights."""
    each = [_taps(side.length, side.size, interpolation) for side in sides]
    shape = len(sides), size, max(weights.shape[1] for _, weights in each)
    index, values = empty(shape, "int32"), empty(shape, "float32")
    index.fill(0)
    values.fill(0)
    for side, (pixels, weights), own_index, own_values in zip(sides, each, index, values, strict=True):
        first, last = _place(side, size)
        kept, taps = slice(side.first, side.last), weights.shape[1]
        own_index[first:last, :taps] = pixels[kept] + side.start
        own_values[first:last, :taps] = weights[kept]
    return index, values


def _dense(
    taps: Taps, which: slice | list[int], padded: int, device: torch.device
) -> torch.Tensor:  # fmt: skip
    """Return (N, size, padded) float32 on the device: what each pixel of the images counts for each of the results."""
    import torch

    index, values = (torch.from_numpy(each[which]).to(device, non_blocking=True) for each in taps)
    dense = torch.zeros((*index.shape[:2], padded), device=device)
    # no pixel has two weights that are not 0, so that the order of adding is all the same
    return dense.scatter_add_(2, index.long(), values)


@lru_cache(maxsize=16384)
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
