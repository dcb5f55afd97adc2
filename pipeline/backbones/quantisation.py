"""8-bit networks: NNCF's post-training quantisation of the network that OpenVINO runs.

What a network becomes depends on the images that it is calibrated on. Here these are random parts of the
photographs that installed packages bring along, the same for every data set: then a flag alone names the network,
rows of different data sets are interchangeable, and whoever has the libraries of the spec can make it again.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from ..core.errors import EngineError
from ..core.machine import installed
from ..data.augmentation import CropAndFlip
from ..data.phototiles import find_photographs, photograph_files
from ..data.transforms import Transform

IMAGES = 306  # 17 parts of each of 18 photographs
LIBRARIES = ("nncf", "openvino")


def quantisation() -> dict[str, Any]:
    """Return what decides what a network becomes, besides itself, as values for a `Spec`.

    Raises
    ------
    EngineError
        If the libraries or the photographs are not installed.
    """
    if any(importlib.util.find_spec(library) is None for library in LIBRARIES):
        raise EngineError("Precision int8 takes NNCF and OpenVINO: pip install 'image-feature-pipeline[int8]'.")
    return {"method": "nncf.quantize, mixed preset, 1", "images": IMAGES, "photographs": _photographs_digest(),
            **{library: installed(library) for library in LIBRARIES}}


@cache
def _photographs_digest() -> str:
    digest = hashlib.sha256()
    for file in (files := photograph_files()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    if len(files) < 18:
        raise EngineError(f"Precision int8 is calibrated on photographs that come with scikit-image and scikit-learn, "
                          f"and {len(files)} of 18 are there. Install scikit-image.")
    return digest.hexdigest()[:32]


def calibration_images(transform: Transform) -> Iterator[np.ndarray]:
    """Yield `IMAGES` random parts of photographs, uint8 (1, H, W, 3), the same ones every time."""
    view, rng = CropAndFlip(transform), np.random.default_rng(0)
    photographs, _ = find_photographs()
    for _ in range(IMAGES // len(photographs)):
        for name in sorted(photographs):
            yield np.ascontiguousarray(view(photographs[name], rng)[None])
