"""Fine-tuning: retraining the whole network, to compare with heads on cached features.

`PRESETS`, `STRATEGIES` and `FinetuneSettings` are there at once; `train`, which needs torch, is imported when it is
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import lazy_names
from .settings import DEFAULT_PRESET, PRESETS, STRATEGIES, FinetuneSettings, Strategy

if TYPE_CHECKING:
    from .result import Finetuned, Scores
    from .training import train

_HOMES = {
    "Finetuned": "result",
    "Scores": "result",
    "train": "training",
}

__all__ = [
    "DEFAULT_PRESET",
    "PRESETS",
    "STRATEGIES",
    "FinetuneSettings",
    "Finetuned",
    "Scores",
    "Strategy",
    "train",
]

__getattr__ = lazy_names(__name__, _HOMES)
