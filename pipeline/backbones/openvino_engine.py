"""Running a frozen backbone with OpenVINO, on the CPU: about twice as fast as torch there."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from . import kept
from .backbone import Backbone
from .memory import CPU_BATCH
from .quantised import quantisation, quantised
from .torch_engine import one_thread

# what OpenVINO's CPU computes in; of a quantised network, what is not 8 bits
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
AGREEMENT = 1e-4  # ‖difference‖ / ‖row‖ to torch in float32; more means that the conversion went wrong
# they decide what the converted network is
LIBRARIES = ("image-feature-pipeline", "openvino", "torch", "torchvision", "timm")


class OpenVINOEngine:
    """A backbone compiled by OpenVINO. Safe to call from several threads at once.

    Parameters
    ----------
    backbone : Backbone
        With precision ``float32``, ``bfloat16`` or ``int8``. OpenVINO computes in float32 where the
        processor has no bfloat16.
    streams : int
        Threads that will call it, each of which gets a core.
    cache_dir : Path, optional
        Where the converted network is kept. A later engine then needs no torch.

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
    batch_size = CPU_BATCH
    dtype = np.dtype("float32")

    def __init__(self, backbone: Backbone, streams: int = 1, cache_dir: Path | None = None):
        if not available():
            raise EngineError("OpenVINO is not installed: pip install 'image-feature-pipeline[openvino]'")
        if backbone.precision not in PRECISIONS:
            raise EngineError(f"OpenVINO computes in {' or '.join(PRECISIONS)} here, not in {backbone.precision}.")
        path = place(cache_dir, backbone) if cache_dir else None
        network = kept.read(path, backbone.spec) if path else None
        if network is None:
            network = _quantised(backbone, path, cache_dir) if backbone.quantisation else _converted(backbone, path)
        self._compiled = _compiled(network, backbone.precision, streams)
        self._requests = threading.local()
        self.notes: list[str] = []
        self.features = self(np.zeros((1, *backbone.transform.crop, 3), np.uint8)).shape[1]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features: from uint8 (N, H, W, 3) to `dtype` (N, D)."""
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        return request.infer({0: pixels}, share_inputs=True)[0].copy()  # the next batch overwrites the result


def available() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return importlib.util.find_spec("openvino") is not None


def place(cache_dir: Path, backbone: Backbone) -> Path:
    """Return the file in which this backbone's converted network is kept."""
    # which libraries quantised a network is in its spec, and it is as good with any later one
    return kept.place(cache_dir, backbone.name, backbone.spec, () if backbone.quantisation else LIBRARIES)


def is_prepared(backbone: Backbone, cache_dir: Path) -> bool:
    """Tell whether the converted network is kept, so that running the backbone may need no torch."""
    return available() and place(cache_dir, backbone).is_file()


def _openvino() -> Any:
    # importing OpenVINO reports to its maker's web analytics, unless this package of theirs is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _compiled(network: kept.Network, precision: str, streams: int) -> Any:
    openvino = _openvino()
    core = openvino.Core()
    weights = openvino.Tensor(np.frombuffer(network.weights, np.uint8)) if network.weights else openvino.Tensor()
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        # pinned threads of two processes would share cores while others idle
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return core.compile_model(core.read_model(network.graph, weights), "CPU", settings)
    except Exception as error:  # OpenVINO raises RuntimeError and others of its own
        raise EngineError(f"OpenVINO cannot compile this network: {_reason(error)}") from error


def _converted(backbone: Backbone, path: Path | None) -> kept.Network:
    """Convert the backbone, make sure that the result agrees with torch, and keep it at `path`."""
    import torch

    from .prepare import PreparedNetwork

    network = PreparedNetwork(backbone)
    size = backbone.transform.crop
    probe = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    with torch.no_grad(), one_thread():
        expected = network(torch.from_numpy(probe)).numpy()
        converted = _convert(network, probe, backbone.name)
    rows = _compiled(converted, "float32", 1).create_infer_request().infer({0: probe[:1]})[0]
    error, bound = np.linalg.norm(rows - expected[:1]), AGREEMENT * np.linalg.norm(expected[:1])
    if rows.shape != expected[:1].shape or not error <= bound:
        raise EngineError(f"OpenVINO's features of {backbone.name} deviate from torch's.")
    if path:
        kept.write(path, converted, backbone.spec)
    return converted


def _quantised(backbone: Backbone, path: Path | None, cache_dir: Path | None) -> kept.Network:
    """Make the 8-bit network from the converted one, and keep it at `path`."""
    if changed := [f"{name} {then}, now {now}" for name, now in quantisation().items()
                   if (then := backbone.quantisation.get(name)) != now]:
        raise EngineError(f"The int8 network of {backbone.name} is not in {str(path)!r} (any more), and cannot be made "
                          f"again as it was: it was made with {', '.join(changed)}. Put the file back, or install "
                          "those versions.")
    whole = replace(backbone, precision="float32", quantisation={})
    source = place(cache_dir, whole) if cache_dir else None
    known = kept.read(source, whole.spec) if source else None
    made = quantised(known or _converted(whole, source), backbone.transform, _openvino())
    if path:
        kept.write(path, made, backbone.spec)
    return made


def _convert(network: Any, probe: np.ndarray, name: str) -> kept.Network:
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
            return kept.Network(*((Path(folder) / f"network.{kind}").read_bytes() for kind in ("xml", "bin")))
    except Exception as error:  # tracing and conversion run the network's own code, which may raise anything
        raise EngineError(f"OpenVINO cannot convert {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".") + "."
