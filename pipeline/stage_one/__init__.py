"""Stage one: images to cached rows. Extract, estimate beforehand, find and check caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import lazy_names

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

__getattr__ = lazy_names(__name__, _HOMES)
