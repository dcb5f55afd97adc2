"""Fine-tuning: retraining the whole network, to compare with heads on cached features.

`STRATEGIES` and `FinetuneSettings` are there at once; `train`, which needs torch, is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import FinetuneSettings
from .strategies import STRATEGIES, Strategy

if TYPE_CHECKING:
    from .result import Finetuned, Scores
    from .training import train

_HOMES = {
    "Finetuned": "result",
    "Scores": "result",
    "train": "training",
}

__all__ = [
    "STRATEGIES",
    "FinetuneSettings",
    "Finetuned",
    "Scores",
    "Strategy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
