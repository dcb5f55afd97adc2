"""Stage two: heads, scikit-learn classifiers trained on cached features in seconds.

`HEADS` is the table of all of them. Importing this package imports neither torch nor scikit-learn; only `linear`
and `mlp` need torch, and only to train.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Head
    from .calibration import calibrate, conformal_threshold
    from .errors import HeadError
    from .familiarity import Familiarity, fit_familiarity
    from .linear import LinearHead
    from .registry import HEADS, HeadEntry, make_head
    from .rows import StreamedRows
    from .saving import load_head, save_head
    from .scaling import SCALINGS
    from .scores import prediction_sets, probabilities
    from .sweep import SweepResult, sweep_head

_HOME = {
    "HEADS": "registry", "HeadEntry": "registry", "make_head": "registry",
    "Head": "base", "probabilities": "scores", "HeadError": "errors", "SCALINGS": "scaling",
    "LinearHead": "linear", "save_head": "saving", "load_head": "saving",
    "calibrate": "calibration", "conformal_threshold": "calibration", "prediction_sets": "scores",
    "Familiarity": "familiarity", "fit_familiarity": "familiarity",
    "sweep_head": "sweep", "SweepResult": "sweep", "StreamedRows": "rows",
}

__all__ = [
    "HEADS", "SCALINGS", "Familiarity", "Head", "HeadEntry", "HeadError", "LinearHead", "StreamedRows",
    "SweepResult", "calibrate", "conformal_threshold", "fit_familiarity", "load_head", "make_head",
    "prediction_sets", "probabilities", "save_head", "sweep_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
