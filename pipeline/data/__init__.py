"""Images and their labels: data sets by name, folder or CSV; guarded decoding; transforms and augmentation."""

from __future__ import annotations

from .builtin import DATASETS, DEFAULT_DATA
from .dataset import Dataset, load_dataset
from .listing import list_images
from .reader import DECODE_RULES, Limits, UnreadableImageError, decode, read_bytes
from .transforms import Transform

__all__ = [
    "DATASETS",
    "DECODE_RULES",
    "DEFAULT_DATA",
    "Dataset",
    "Limits",
    "Transform",
    "UnreadableImageError",
    "decode",
    "list_images",
    "load_dataset",
    "read_bytes",
]
