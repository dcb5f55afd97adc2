"""Content digests as keys that numpy sorts and searches, a million at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def as_keys(digests: np.ndarray) -> np.ndarray:
    """View (N, 16) uint8 digests as (N,) keys, equal and ordered as the bytes are."""
    digests = np.ascontiguousarray(digests, dtype=np.uint8).reshape(-1, 16)
    return digests.view("S16").reshape(-1)


def as_digests(keys: np.ndarray) -> np.ndarray:
    """View keys as (N, 16) uint8 digests."""
    return np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 16)


def from_hex(texts: Iterable[str]) -> np.ndarray:
    """Return the keys that these hexadecimal texts (32 characters each) stand for."""
    return as_keys(np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.uint8))


def to_hex(keys: np.ndarray) -> list[str]:
    """Return keys as hexadecimal texts."""
    return [row.tobytes().hex() for row in as_digests(keys)]


def find(ascending: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each key stands in the ascending array, and whether it does."""
    if not len(ascending):
        return np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    return at, ascending[at] == keys
