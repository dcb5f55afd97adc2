"""Running a frozen backbone with OpenVINO, on the CPU: about twice as fast as torch there."""

from __future__ import annotations

import importlib.util
import io
import logging
import sys
import tempfile
import threading
import warnings
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones.backbone import Backbone
from ..backbones.quantisation import IMAGES, calibration_images, quantisation
from ..core.errors import EngineError
from ..data.transforms import Transform
from . import network_cache
from .memory import CPU_BATCH, filled
from .torch_engine import one_thread

# what OpenVINO's CPU computes in; of a quantised network, what is not 8 bits
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
PAYS = 32  # images computed in vain in batches filled up, which take about as long as compiling for their size
AGREEMENT = 1e-4  # ‖difference‖ / ‖row‖ to torch in float32; more means that the conversion went wrong
# they decide what the converted network is
LIBRARIES = ("image-feature-pipeline", "openvino", "torch", "torchvision", "timm")


class OpenVINOEngine:
    """A backbone compiled by OpenVINO. Safe to call from several threads at once.

    It is compiled for one size of batch, which runs faster than one for any size. Smaller batches are filled up, until
    compiling for their size pays; larger ones are what it is compiled for when they come.

    Parameters
    ----------
    backbone : Backbone
        With precision ``float32``, ``bfloat16`` or ``int8``. OpenVINO computes in float32 where the
        processor has no bfloat16.
    streams : int
        Threads that will call it, each of which gets a core.
    cache_dir : Path, optional
        Where the converted network is kept. A later engine then needs no torch.
    batch_size : int
        Images a forward pass, at most.

    Raises
    ------
    EngineError
        If OpenVINO is missing, or cannot run this network.

    Attributes
    ----------
    dtype, features, batch_size, notes
        As in `TorchEngine`.
    """

    name = "openvino"
    on_cpu = True
    dtype = np.dtype("float32")

    def __init__(
        self, backbone: Backbone, streams: int = 1, cache_dir: Path | None = None, batch_size: int = CPU_BATCH
    ):  # fmt: skip
        if not available():
            raise EngineError("OpenVINO is not installed: pip install 'image-feature-pipeline[openvino]'")
        if backbone.precision not in PRECISIONS:
            raise EngineError(f"OpenVINO computes in {' or '.join(PRECISIONS)} here, not in {backbone.precision}.")
        path = place(cache_dir, backbone) if cache_dir else None
        network = network_cache.read(path, backbone.spec) if path else None
        if network is None:
            network = _quantised(backbone, path, cache_dir) if backbone.quantisation else _converted(backbone, path)
        self._graph = _graph(network)
        self._pixels, self._precision, self._streams = (*backbone.transform.crop, 3), backbone.precision, streams
        self._compiling, self._requests = threading.Lock(), threading.local()
        self._in_vain = Counter[int]()
        first = min(batch_size, CPU_BATCH)
        self._sizes = {first: self._compiled_for(first)}
        self.batch_size = batch_size
        self.features = self._sizes[first].output(0).shape[1]
        self.notes: list[str] = []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features: from uint8 (N, H, W, 3) to `dtype` (N, D)."""
        rows = np.empty((len(pixels), self.features), self.dtype)
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size]
            size = self._size_for(len(batch))
            found = self._request(size).infer({0: filled(batch, size)}, share_inputs=True)[0]
            rows[start : start + size] = found[: len(batch)]  # copied, for the next batch overwrites what was found
        return rows

    def _size_for(self, images: int) -> int:
        """Return for what size of batch the network is, or now becomes, compiled to take so many images."""
        exact = min(self.batch_size, 2 ** (images - 1).bit_length())
        with self._compiling:
            size = min((size for size in self._sizes if size >= images), default=0)
            if size > exact:
                self._in_vain[exact] += size - images
            if not size or (self._in_vain[exact] >= PAYS and exact not in self._sizes):
                size, self._sizes[exact] = exact, self._compiled_for(exact)
        return size

    def _compiled_for(self, size: int) -> Any:
        try:
            self._graph.reshape([size, *self._pixels])
        except Exception as error:  # OpenVINO raises RuntimeError and others of its own
            raise EngineError(f"OpenVINO cannot run this network in batches of {size}: {_reason(error)}") from error
        return _compiled(self._graph, self._precision, self._streams)

    def _request(self, size: int) -> Any:
        """Return what runs batches of this size for the calling thread alone."""
        own: dict[int, Any] = vars(self._requests).setdefault("own", {})
        if size not in own:
            own[size] = self._sizes[size].create_infer_request()
        return own[size]


def available() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def place(cache_dir: Path, backbone: Backbone) -> Path:
    """Return the file in which this backbone's converted network is kept."""
    # which libraries quantised a network is in its spec, and it is as good with any later one
    return network_cache.place(cache_dir, backbone.name, backbone.spec, () if backbone.quantisation else LIBRARIES)


def is_prepared(backbone: Backbone, cache_dir: Path) -> bool:
    """Tell whether the converted network is kept, so that running the backbone may need no torch."""
    return available() and place(cache_dir, backbone).is_file()


def _openvino() -> Any:
    # importing OpenVINO reports to its maker's web analytics, unless this package of theirs is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _graph(network: network_cache.Network) -> Any:
    openvino = _openvino()
    weights = openvino.Tensor(np.frombuffer(network.weights, np.uint8)) if network.weights else openvino.Tensor()
    try:
        return openvino.Core().read_model(network.graph, weights)
    except Exception as error:  # OpenVINO raises RuntimeError and others of its own
        raise EngineError(f"OpenVINO cannot read this network: {_reason(error)}") from error


def _compiled(graph: Any, precision: str, streams: int) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        # pinned threads of two processes would share cores while others idle
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return _openvino().Core().compile_model(graph, "CPU", settings)
    except Exception as error:  # OpenVINO raises RuntimeError and others of its own
        raise EngineError(f"OpenVINO cannot compile this network: {_reason(error)}") from error


def _converted(backbone: Backbone, path: Path | None) -> network_cache.Network:
    """Convert the backbone, make sure that the result agrees with torch, and keep it at `path`."""
    import torch

    from .preparation import PreparedNetwork

    network = PreparedNetwork(backbone)
    size = backbone.transform.crop
    probe = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    with torch.no_grad(), one_thread():
        expected = network(torch.from_numpy(probe)).numpy()
        converted = _convert(network, probe, backbone.name)
    rows = _compiled(_graph(converted), "float32", 1).create_infer_request().infer({0: probe[:1]})[0]
    error, bound = np.linalg.norm(rows - expected[:1]), AGREEMENT * np.linalg.norm(expected[:1])
    if rows.shape != expected[:1].shape or not error <= bound:
        raise EngineError(f"OpenVINO's features of {backbone.name} deviate from torch's.")
    if path:
        network_cache.write(path, converted, backbone.spec)
    return converted


def _quantised(backbone: Backbone, path: Path | None, cache_dir: Path | None) -> network_cache.Network:
    """Make the 8-bit network from the converted one, and keep it at `path`."""
    if changed := [f"{name} {then}, now {now}" for name, now in quantisation().items()
                   if (then := backbone.quantisation.get(name)) != now]:
        raise EngineError(f"The int8 network of {backbone.name} is not in {str(path)!r} (any more), and cannot be made "
                          f"again as it was: it was made with {', '.join(changed)}. Put the file back, or install "
                          "those versions.")
    whole = replace(backbone, precision="float32", quantisation={})
    source = place(cache_dir, whole) if cache_dir else None
    known = network_cache.read(source, whole.spec) if source else None
    made = quantised(known or _converted(whole, source), backbone.transform, _openvino())
    if path:
        network_cache.write(path, made, backbone.spec)
    return made


def _convert(network: Any, probe: np.ndarray, name: str) -> network_cache.Network:
    import torch

    openvino = _openvino()
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # the tracer's, about sizes that are constant here
            # OpenVINO's own call traces twice more, to compare; what comes out is compared anyway
            traced = torch.jit.freeze(torch.jit.trace(network, torch.from_numpy(probe), check_trace=False))
            shape = openvino.PartialShape([-1, *probe.shape[1:]])
            model = openvino.convert_model(traced, input=[(shape, openvino.Type.u8)])
            openvino.save_model(model, Path(folder) / "network.xml", compress_to_fp16=False)
            return network_cache.Network(*((Path(folder) / f"network.{kind}").read_bytes() for kind in ("xml", "bin")))
    except Exception as error:  # tracing and conversion run the network's own code, which may raise anything
        raise EngineError(f"OpenVINO cannot convert {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."


def quantised(network: network_cache.Network, transform: Transform, openvino: Any) -> network_cache.Network:
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
            return network_cache.Network(*((Path(folder) / f"network.{kind}").read_bytes() for kind in ("xml", "bin")))
    except Exception as error:  # NNCF raises errors of its own, of OpenVINO's and of numpy's
        raise EngineError(f"NNCF cannot quantise this network: {' '.join(str(error).split())}") from error
