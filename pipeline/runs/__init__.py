"""Run folders: what a trained classifier leaves behind, how it predicts, and how runs compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import lazy_names

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

__getattr__ = lazy_names(__name__, _HOMES)
