"""Images and labels: data sets by name, folder, CSV, archive, table or URL; decoding, transforms, augmentation."""

from __future__ import annotations

from .builtin import DATASETS, DEFAULT_DATA
from .containers import list_images
from .dataset import Dataset, load_dataset
from .decoding import DECODE_RULES, decode, read_bytes
from .files import Limits, Place, UnreadableImageError, place
from .given import on_disk
from .transforms import Transform

__all__ = [
    "DATASETS",
    "DECODE_RULES",
    "DEFAULT_DATA",
    "Dataset",
    "Limits",
    "Place",
    "Transform",
    "UnreadableImageError",
    "decode",
    "list_images",
    "load_dataset",
    "on_disk",
    "place",
    "read_bytes",
]
