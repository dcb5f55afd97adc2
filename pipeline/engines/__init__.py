"""How a frozen network runs fast: pixels in, features out, on each kind of machine.

An `Engine` runs one backbone, an `Embedder` feeds it from all cores. Importing this room loads no torch.
"""

from __future__ import annotations

from .embedding import Embedder
from .engine import ENGINES, Engine, Running, make_engine
from .openvino_engine import is_prepared
from .torch_engine import TorchEngine, choose_device

__all__ = [
    "ENGINES",
    "Embedder",
    "Engine",
    "Running",
    "TorchEngine",
    "choose_device",
    "is_prepared",
    "make_engine",
]
