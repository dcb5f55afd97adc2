"""Run folders: what a trained classifier leaves behind, how it predicts, and how runs compare."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import ImageClassifier, Prediction
    from .run import Run

_HOMES = {
    "ImageClassifier": "classifier",
    "Prediction": "classifier",
    "Run": "run",
}

__all__ = [
    "ImageClassifier",
    "Prediction",
    "Run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
