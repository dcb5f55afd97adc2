"""How the layers are named at which features are read. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import UnknownNameError

POOLED = "pooled"
STAGES = "stages"
AND = "+"
POOLINGS = ("", "mean", "max", "meanmax", "cls")
"""From a module's output to a vector an image: what may stand behind a layer's name and a colon. None: flattened."""


@dataclass(frozen=True)
class Part:
    """One of the layers that features are read at.

    Attributes
    ----------
    module : str
        Its name in the network, or ``pooled``.
    pooling : str
        One of `POOLINGS`.
    """

    module: str
    pooling: str = ""

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``NAME`` or ``NAME:POOLING``.

        Raises
        ------
        UnknownNameError
            If there is no such pooling.
        """
        module, _, pooling = text.partition(":")
        if pooling not in POOLINGS:
            raise UnknownNameError("pooling", pooling, POOLINGS[1:])
        return cls(module, pooling)

    def __str__(self) -> str:
        return f"{self.module}:{self.pooling}" if self.pooling else self.module


def position_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return which axes of one image's output are positions: H and W of (C, H, W) or (H, W, C), T of (T, C)."""
    if len(shape) == 3:
        return (0, 1) if shape[0] == shape[1] != shape[2] else (1, 2)
    return tuple(range(len(shape) - 1))


def several(layer: str) -> bool:
    """Tell whether these are several layers side by side."""
    return AND in layer or layer == STAGES
