"""Fine-tuning: retraining the whole network, to compare with heads on cached features.

`STRATEGIES` and `FinetuneSettings` are there at once; `train`, which needs torch, is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import FinetuneSettings
from .strategies import STRATEGIES, Strategy

if TYPE_CHECKING:
    from .outcome import Finetuned, Scores
    from .training import train

_HOME = {"Finetuned": "outcome", "Scores": "outcome", "train": "training"}

__all__ = ["STRATEGIES", "FinetuneSettings", "Finetuned", "Scores", "Strategy", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
