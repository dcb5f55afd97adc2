"""8-bit networks: NNCF's post-training quantisation of the network that OpenVINO runs.

What a network becomes depends on the images that it is calibrated on. Here these are random parts of the
photographs that installed packages bring along, the same for every data set: then a flag alone names the network,
rows of different data sets are interchangeable, and whoever has the libraries of the spec can make it again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..data.augmentation import CropAndFlip
from ..data.phototiles import find_photographs, photograph_files
from ..data.transforms import Transform
from ..errors import EngineError
from ..libraries import installed
from . import kept

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


def quantised(network: kept.Network, transform: Transform, openvino: Any) -> kept.Network:
    """Return a network with 8-bit weights and activations.

    Parameters
    ----------
    network : Network
        As OpenVINO saved it, from uint8 (N, H, W, 3) to features.
    transform : Transform
    openvino : module

    Raises
    ------
    EngineError
        If NNCF cannot quantise it.
    """
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            # which networks a GPU is missing for, and what NNCF does at each moment, is nobody's question here
            for name in ("nncf", "torch.utils.cpp_extension"):
                logging.getLogger(name).setLevel(logging.ERROR)
            import nncf

            weights = openvino.Tensor(np.frombuffer(network.weights, np.uint8))
            model = openvino.Core().read_model(network.graph, weights)
            images = nncf.Dataset(list(calibration_images(transform)))
            made = nncf.quantize(model, images, preset=nncf.QuantizationPreset.MIXED, subset_size=IMAGES)
            openvino.save_model(made, Path(folder) / "network.xml", compress_to_fp16=False)
            return kept.Network(*((Path(folder) / f"network.{kind}").read_bytes() for kind in ("xml", "bin")))
    except Exception as error:  # NNCF raises errors of its own, of OpenVINO's and of numpy's
        raise EngineError(f"NNCF cannot quantise this network: {' '.join(str(error).split())}") from error
