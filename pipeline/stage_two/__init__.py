"""Stage two: heads trained on a cache. Fit, sweep, repeat, calibrate, learning curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import lazy_names

if TYPE_CHECKING:
    from .train import train_head, train_heads

_HOMES = {
    "train_head": "train",
    "train_heads": "train",
}

__all__ = [
    "train_head",
    "train_heads",
]

__getattr__ = lazy_names(__name__, _HOMES)
