"""Batches augmented on an accelerator, from decoded images that stay in its memory as far as they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.machine import available_memory
from ..data import Dataset, Transform
from ..data.augmentation import Augmentation
from ..data.decoding import decode_array
from ..data.device_resize import Plan, Resizing, resized
from ..data.preprocessing import MOST_PIXELS
from .batches import Decoder
from .settings import FinetuneSettings

DEVICE_SHARE = 0.25  # of the device's free memory, for images


def decoder_for(
    dataset: Dataset, transform: Transform, settings: FinetuneSettings, device: torch.device
) -> Decoder:  # fmt: skip
    """Return what decodes and augments for a device, there where it can."""
    words = dataset, transform, settings.workers, settings.image_memory
    # what adds up the weights of resizing on a device is not among the operations that are always the same
    return Decoder(*words) if device.type == "cpu" or settings.deterministic else DeviceDecoder(device, *words)


@dataclass(frozen=True)
class _Part:
    """A part of an image for the device to resize.

    Parameters
    ----------
    image : (H, W, 3) uint8 array or tensor
        In this machine's memory, or on the device.
    resizing : Resizing
    """

    image: Any
    resizing: Resizing


class DeviceDecoder(Decoder):
    """A `Decoder` whose batches are on a device, which resizes and turns as the augmentation draws.

    Draws are those of the processor's way, so are the parts of images that are seen; their pixels are Pillow's but for
    3 % that are a level or two off, see `Resizing`. An augmentation that does more, and large images, are left to
    Pillow.

    Parameters
    ----------
    device : torch.device
    dataset, transform, workers, memory
        See `Decoder`.
    """

    def __init__(
        self, device: torch.device, dataset: Dataset, transform: Transform, workers: int = 0, memory: float = 0
    ):  # fmt: skip
        super().__init__(dataset, transform, workers, memory)
        self._device = device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
        self._room_there = int(DEVICE_SHARE * free) if memory else 0
        self._there: dict[tuple[int, bool], torch.Tensor] = {}

    def _view(self, index: int, augment: Augmentation, plain: bool, rng: np.random.Generator) -> Any:
        """Return a view that is ready, on either side, or a part of an image."""
        if plain and (index, True) in self._there:
            return self._there[index, True]
        image: Any = self._there.get((index, False))
        if image is None:
            image = self._source(index, False)
        height, width = image.shape[:2]
        if height * width <= MOST_PIXELS and (resizing := augment.resizing(height, width, rng)) is not None:
            return _Part(image, resizing)
        return augment(Image.fromarray(image.numpy(force=True) if isinstance(image, torch.Tensor) else image), rng)

    def _decoded(self, index: int, plain: bool) -> tuple[Any, int]:
        image = decode_array(self.dataset.read(index), self.dataset.limits)
        return image, image.nbytes

    def _together(self, indices: np.ndarray, views: list[Any], plain: bool) -> torch.Tensor:
        """Return (n, H, W, 3) uint8 on the device."""
        crop = self.transform.crop
        pixels = torch.empty((len(views), *crop, 3), dtype=torch.uint8, device=self._device)
        for parts in _side_by_side({place: view.image.shape for place, view in enumerate(views)
                                    if isinstance(view, _Part)}):  # fmt: skip
            images = [self._sent(views[place].image) for place in parts]
            for place, image in zip(parts, images, strict=True):
                if not plain:  # of which the view is kept instead
                    self._keep(int(indices[place]), False, image)
            plan = Plan.of([views[place].resizing for place in parts], crop, self.transform.interpolation)
            made = resized(images, plan, self.transform.fill)
            pixels[parts if len(parts) < len(views) else slice(None)] = made
        for place, view in enumerate(views):
            if not isinstance(view, _Part):
                pixels[place] = view if isinstance(view, torch.Tensor) else torch.from_numpy(np.array(view))
            if plain:
                self._keep(int(indices[place]), True, pixels[place])
        return pixels

    def _sent(self, image: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return an image on the device."""
        if isinstance(image, torch.Tensor):
            return image
        return torch.from_numpy(np.require(image, requirements="W")).to(self._device)

    def _keep(self, index: int, plain: bool, there: torch.Tensor) -> None:
        """Keep an image on the device, and no longer here, while there is room."""
        if (index, plain) not in self._there and there.nbytes <= self._room_there:
            self._room_there -= there.nbytes
            self._there[index, plain] = there
            with self._lock:
                if (kept := self._kept.pop((index, False), None)) is not None:
                    self._room += kept.nbytes


def _side_by_side(shapes: dict[int, tuple[int, ...]]) -> list[list[int]]:
    """Divide places, with the shapes of their images, so that each part's padded array is no larger than images of
    `MOST_PIXELS` each: a wide one beside a tall one would take any amount."""
    parts: list[list[int]] = []
    height = width = 0
    for place, (own_height, own_width, _) in shapes.items():
        height, width = max(height, own_height), max(width, own_width)
        if not parts or (len(parts[-1]) + 1) * height * width > len(shapes) * MOST_PIXELS:
            parts.append([])
            height, width = own_height, own_width
        parts[-1].append(place)
    return parts
