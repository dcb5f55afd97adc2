"""Heads: scikit-learn classifiers on numpy arrays of features.

`HEADS` is the table of all of them. Importing this room imports neither torch nor scikit-learn; only `linear` and `mlp`
need torch, and only to train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import HeadError
from ..core.registry import lazy_names

if TYPE_CHECKING:
    from .base import Head
    from .calibration import calibrate, conformal_threshold
    from .out_of_distribution import OutOfDistribution, fit_out_of_distribution
    from .registry import HEADS, HeadEntry, make_head
    from .rows import StreamedRows
    from .saving import load_head, save_head
    from .scaling import SCALINGS
    from .scores import prediction_sets, probabilities
    from .sweep import SweepResult, sweep_head
    from .torch_heads import LinearHead

_HOMES = {
    "HEADS": "registry",
    "Head": "base",
    "HeadEntry": "registry",
    "LinearHead": "torch_heads",
    "OutOfDistribution": "out_of_distribution",
    "SCALINGS": "scaling",
    "StreamedRows": "rows",
    "SweepResult": "sweep",
    "calibrate": "calibration",
    "conformal_threshold": "calibration",
    "fit_out_of_distribution": "out_of_distribution",
    "load_head": "saving",
    "make_head": "registry",
    "prediction_sets": "scores",
    "probabilities": "scores",
    "save_head": "saving",
    "sweep_head": "sweep",
}

__all__ = [
    "HEADS",
    "SCALINGS",
    "Head",
    "HeadEntry",
    "HeadError",
    "LinearHead",
    "OutOfDistribution",
    "StreamedRows",
    "SweepResult",
    "calibrate",
    "conformal_threshold",
    "fit_out_of_distribution",
    "load_head",
    "make_head",
    "prediction_sets",
    "probabilities",
    "save_head",
    "sweep_head",
]

__getattr__ = lazy_names(__name__, _HOMES)
