"""Stage one: images to cached rows. Extract, estimate beforehand, find and check caches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .estimation import estimate
    from .extraction import Extraction, extract

_HOMES = {
    "Extraction": "extraction",
    "estimate": "estimation",
    "extract": "extraction",
}

__all__ = [
    "Extraction",
    "estimate",
    "extract",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
