"""Images and their labels: data sets by name, folder or CSV; guarded decoding; transforms and augmentation."""

from __future__ import annotations

from .reader import DECODE_RULES, Limits, UnreadableImageError, decode, read_bytes
from .transforms import Transform

__all__ = ["DECODE_RULES", "Limits", "Transform", "UnreadableImageError", "decode", "read_bytes"]
