"""Running a frozen backbone with torch.compile: for long jobs, because compiling takes its time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backbones.backbone import Backbone
from ..backbones.weights import one_line
from ..core.errors import EngineError
from .memory import filled
from .torch_engine import TorchEngine


class CompiledEngine(TorchEngine):
    """A backbone compiled for one batch size; smaller batches are filled up.

    Parameters
    ----------
    backbone, device
        As for `TorchEngine`.
    batch_size : int

    Raises
    ------
    EngineError
        If torch cannot compile this network here; most often a C++ compiler is missing.
    """

    name = "compile"

    def __init__(self, backbone: Backbone, device: str = "auto", batch_size: int = 8):
        self._size = batch_size
        super().__init__(backbone, device, batch_size)

    def _prepare(self) -> None:
        import torch

        plain, threads = self.network, torch.get_num_threads()
        try:
            if self.on_cpu:
                torch.set_num_threads(1)  # the code is made for a number of threads: one, as every worker has
            compiled: Any = torch.compile(plain, dynamic=False, options={"freezing": self.on_cpu})
            self.network = compiled
            self._forward(np.zeros((1, *self._crop, 3), np.uint8))
        except Exception as error:  # compilers fail in many ways
            raise EngineError(f"torch.compile failed: {one_line(error)}.") from error
        finally:
            torch.set_num_threads(threads)

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), self._size):
            part = pixels[start : start + self._size]
            parts.append(super()._forward(filled(part, self._size))[: len(part)])
        return np.concatenate(parts)
