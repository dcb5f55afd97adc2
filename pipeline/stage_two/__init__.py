"""Stage two: heads trained on a cache. Fit, sweep, repeat, calibrate, learning curves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
