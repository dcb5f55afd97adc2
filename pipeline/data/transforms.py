"""From a decoded image to the network's input size, in bytes; normalisation happens on the device.

Every step equals torchvision's (Resize, CenterCrop) and timm's (ResizeKeepRatio, CenterCropOrPad) on Pillow
images bit for bit, without importing either. One `Image.resize` with a `box` would take half the time, but Pillow
keeps a box in single precision and may then resize down before across: about 1 % of the pixels come out different.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import PipelineError
from .files import UnreadableImageError

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
FITS = ("short", "squash", "cover", "inside")
MOST_PIXELS = 100_000_000  # of the resized image: a strip of 1 x 60,000 would grow to 256 x 15,360,000


@dataclass(frozen=True)
class Transform:
    """Resize, then crop the centre, padding where the image is smaller.

    Parameters
    ----------
    resize : tuple of int
        Height and width to resize to, in the way that `fit` says.
    crop : tuple of int
        Height and width of the result.
    interpolation : str
        One of `INTERPOLATIONS`; as Pillow does it, that is with antialiasing.
    mean, std : tuple of float
        Of each channel, on the scale 0..1, for the device to normalise with. Not applied here.
    fit : str
        ``"short"``: the image's shorter side becomes ``resize[0]``, fractions dropped (torchvision's way).
        ``"squash"``: exactly `resize`, whatever the aspect ratio.
        ``"cover"``, ``"inside"``: the ratio is kept, and the image covers or fits inside `resize`, rounded (timm's).
    fill : tuple of int
        Colour of the padding.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "short"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for name, kind in (("resize", int), ("crop", int), ("mean", float), ("std", float), ("fill", int)):
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        if self.interpolation not in INTERPOLATIONS:
            raise PipelineError(f"Unknown interpolation {self.interpolation!r}. Known: {', '.join(INTERPOLATIONS)}.")
        if self.fit not in FITS:
            raise PipelineError(f"Unknown fit {self.fit!r}. Known: {', '.join(FITS)}.")
        if len(self.resize) != 2 or len(self.crop) != 2 or min(self.resize + self.crop) < 1:
            raise PipelineError(f"A transform needs two positive sizes, not resize={self.resize}, crop={self.crop}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise PipelineError(f"A transform needs three means and positive deviations, not {self.mean}, {self.std}.")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return `image` (mode RGB) as the network sees it before normalisation.

        Returns
        -------
        np.ndarray
            Shape (height, width, 3) of `crop`, uint8.

        Raises
        ------
        UnreadableImageError
            The image is so elongated that resizing it would need an absurd amount of memory.
        """
        height, width = self.resized_size(image.height, image.width)
        (top, bottom), (left, right) = span_of_crop(height, self.crop[0]), span_of_crop(width, self.crop[1])
        if width * height > MOST_PIXELS:
            raise UnreadableImageError(f"too elongated to resize: {image.width} x {image.height}")
        method = INTERPOLATIONS[self.interpolation]
        if self.fit != "squash" and image.width >= image.height and right - left < width:
            # Pillow resizes such an image along its rows first, then along its columns: those that are cropped away
            # need no second pass, and the pixels are the same
            image = image.resize((width, image.height), method).crop((left, 0, right, image.height))
            left, right, width = 0, right - left, right - left
        return self._padded(np.asarray(image.resize((width, height), method).crop((left, top, right, bottom))))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of this size is resized to, before the crop."""
        if self.fit == "squash":
            return self.resize
        if self.fit == "short":
            target = self.resize[0]
            if width <= height:
                return int(target * height / width), target
            return target, int(target * width / height)
        ratios = height / self.resize[0], width / self.resize[1]
        ratio = max(ratios) if self.fit == "inside" else min(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def _padded(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.crop
        if pixels.shape[:2] == (height, width):
            return pixels
        top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = self.fill
        canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON values; part of a cache's spec."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Transform:
        """Return the transform that `to_dict` described."""
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise PipelineError(f"Not the description of a transform: {dict(fields)!r} ({error}).") from error

    @classmethod
    def from_torchvision(cls, preset: Any) -> Transform:
        """Return what a torchvision weights enum's own `ImageClassification` preset does to an image.

        Parameters
        ----------
        preset : torchvision.transforms._presets.ImageClassification
            ``weights.transforms()``.

        Raises
        ------
        PipelineError
            It is another kind of preset, or one with a setting that has no counterpart here.
        """
        try:
            resize, crop = _pair(preset.resize_size), _pair(preset.crop_size)
            method, mean, std = preset.interpolation.value, preset.mean, preset.std
        except AttributeError as error:
            raise PipelineError(f"Not a torchvision image classification preset: {preset!r} ({error}).") from error
        squash = len(np.atleast_1d(preset.resize_size)) == 2
        return cls(resize, crop, method, mean, std, fit="squash" if squash else "short")

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Transform:
        """Return what ``timm.data.create_transform(**config, is_training=False)`` does before normalisation.

        Parameters
        ----------
        config : mapping
            A timm model's data config: `input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`.

        Raises
        ------
        PipelineError
            The model takes no three-channel images, or its config has a setting that has no counterpart here.
        """
        channels, height, width = config["input_size"]
        if channels != 3:
            raise PipelineError(f"A network for RGB images has 3 input channels; this one has {channels}.")
        mode, mean = config.get("crop_mode") or "center", tuple(config["mean"])
        if mode not in ("center", "squash", "border"):
            raise PipelineError(f"Unknown crop mode {mode!r} in a timm data config. Known: center, squash, border.")
        share = config.get("crop_pct") or 0.875
        resize = math.floor(height / share), math.floor(width / share)
        fit = {"squash": "squash", "border": "inside"}.get(mode, "short" if resize[0] == resize[1] else "cover")
        fill = tuple(round(255 * value) for value in mean) if mode == "border" else (0, 0, 0)
        method = config.get("interpolation") or "bilinear"
        return cls(resize, (height, width), method, mean, tuple(config["std"]), fit=fit, fill=fill)


def span_of_crop(size: int, wanted: int) -> tuple[int, int]:
    """Return the first and last + 1 pixel of the centre, or of everything where there is less than wanted."""
    if size <= wanted:
        return 0, size
    first = round((size - wanted) / 2.0)
    return first, first + wanted


def _pair(size: Any) -> tuple[int, int]:
    first, *rest = np.atleast_1d(size).tolist()
    return (first, rest[0] if rest else first)
