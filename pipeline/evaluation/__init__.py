"""How good predictions are, and whether one is better: numpy in, numbers out."""

from __future__ import annotations

from .metrics import Z95, EvaluationError, evaluate

__all__ = [
    "Z95",
    "EvaluationError",
    "evaluate",
]
