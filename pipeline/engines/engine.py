"""Engines: what runs a frozen backbone, uint8 pixels in, features out. The same spec gives the same rows on each."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..backbones.backbone import Backbone
from ..core.errors import EngineError, PipelineError, UnknownNameError
from ..core.machine import installed
from ..data import nvjpeg
from . import openvino_engine
from .memory import CPU_BATCH

if TYPE_CHECKING:
    from ..data.device_resize import Ready
    from ..data.staging import Staged
    from .torch_engine import TorchEngine

ENGINES = ("auto", "torch", "openvino", "compile")


class Engine(Protocol):
    """A backbone made ready to run; called from several threads at once.

    Attributes
    ----------
    name : str
    on_cpu : bool
    dtype : numpy dtype
        Of the rows: float16 at float16 precision, else float32.
    features : int
        D, the length of a row.
    batch_size : int
        Images a forward pass that suit it.
    notes : list of str
        Remarks for the user, one line each.
    """

    name: str
    on_cpu: bool
    dtype: np.dtype
    features: int
    batch_size: int
    notes: list[str]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 (N, H, W, 3) to features (N, D)."""


@dataclass(frozen=True)
class Running:
    """How this machine runs a frozen network.

    Attributes
    ----------
    device, engine : str
        See `make_engine`.
    batch_size : int, optional
        Images a forward pass; by default what suits the engine.
    workers : int, optional
        Threads that decode and run the network; by default one a core.
    """

    device: str = "auto"
    engine: str = "auto"
    batch_size: int | None = None
    workers: int | None = None


def make_engine(
    backbone: Backbone,
    device: str = "auto",
    engine: str = "auto",
    *,
    batch_size: int | None = None,
    workers: int = 1,
    cache_dir: Path | None = None,
) -> Engine:
    """Make a backbone ready on the engine that suits this machine.

    An engine that cannot run this backbone gives way to torch, and a line in `notes` says so.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``auto`` (any accelerator that torch offers, else the CPU), or a torch device such as ``cuda:1``.
        ``auto`` and ``cuda`` use all GPUs of the machine.
    engine : str
        ``auto``: OpenVINO on a CPU where it is installed, else torch. ``compile``: torch.compile, which takes
        ten seconds and more to begin; on a CPU it was slower than ``torch`` when measured, so ``auto`` never is it.
    batch_size : int, optional
        Images a forward pass; ``openvino`` and ``compile`` need know, because they are made for one size.
    workers : int
        Threads that will call it.
    cache_dir : Path, optional
        Where prepared networks are kept.

    Raises
    ------
    UnknownNameError, PipelineError
        If there is no such engine or device.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if backbone.decoder == "nvjpeg":
        nvjpeg.require()
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise PipelineError(f"OpenVINO runs on the CPU here, not on {device!r}: use --device cpu, or --engine torch.")
    size = batch_size or CPU_BATCH
    expected = openvino_engine.available() and backbone.precision in openvino_engine.PRECISIONS and _on_cpu(device)
    if backbone.quantisation:
        if engine not in ("auto", "openvino") or device not in ("auto", "cpu"):
            raise PipelineError(f"An int8 network runs on OpenVINO and the CPU, not on engine {engine!r} and device "
                                f"{device!r}: leave --engine and --device out.")
        return openvino_engine.OpenVINOEngine(backbone, workers, cache_dir, size)
    try:
        if engine == "openvino" or (engine == "auto" and expected):
            return openvino_engine.OpenVINOEngine(backbone, workers, cache_dir, size)
        if engine == "compile":
            from .torch_engine import CompiledEngine

            return CompiledEngine(backbone, device, size)
    except EngineError as error:
        instead = f"Using torch as it is: {error}"
        made = _torch_engine(backbone, device, batch_size)
        made.notes.append(instead)
        return made
    return _torch_engine(backbone, device, batch_size)


def _torch_engine(backbone: Backbone, device: str, batch_size: int | None) -> TorchEngine | Replicas:
    from .torch_engine import TorchEngine, devices

    engines = [TorchEngine(backbone, each, batch_size) for each in devices(device)]
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _on_cpu(device: str) -> bool:
    """Tell whether torch would choose the CPU, without asking torch; if in doubt, it might not."""
    if device != "auto":
        return device == "cpu"
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA's, WSL's, AMD's
    return sys.platform == "linux" and "+xpu" not in installed("torch") and not any(map(os.path.exists, drivers))


def accelerated(device: str, engine: str) -> bool:
    """Tell whether an accelerator will probably run the network, without asking torch."""
    return engine != "openvino" and not _on_cpu(device)


class Replicas:
    """One backbone on several accelerators, each of which serves its share of the calling threads."""

    name = "torch"
    on_cpu = False

    def __init__(self, engines: Sequence[TorchEngine]):
        self.engines = tuple(engines)
        self.dtype, self.features = engines[0].dtype, engines[0].features
        self.batch_size = min(engine.batch_size for engine in engines)
        self.resizes = engines[0].resizes
        self._next = cycle(self.engines)
        self._mine = threading.local()
        self.notes: list[str] = []
        for engine in self.engines:
            self.notes += engine.notes
            engine.notes = engine._fitting.notes = self.notes

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features on the accelerator of the calling thread."""
        return self._engine()(pixels)

    def images(self, found: Sequence[Ready]) -> np.ndarray:
        """Resize there too, see `TorchEngine.images`."""
        return self._engine().images(found)

    def staged(self, batch: Staged) -> np.ndarray:
        """Run a batch that is laid out there, see `TorchEngine.staged`."""
        return self._engine().staged(batch)

    def bytes_per_second(self) -> float:
        """Measure how fast bytes come to all of them, if they do not share a bus."""
        return sum(engine.bytes_per_second() for engine in self.engines)

    def lock_pages(self, memory: np.ndarray, lock: bool) -> None:
        """Lock memory into place for all of them, see `TorchEngine.lock_pages`."""
        self.engines[0].lock_pages(memory, lock)

    def _engine(self) -> TorchEngine:
        engine = getattr(self._mine, "engine", None)
        if engine is None:
            engine = self._mine.engine = next(self._next)
        return engine
