"""The cache file's layout: which datasets, of which type, in which pieces."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

ROW_DATASETS = ("features", "labels", "splits", "paths", "digests")
"""One entry a readable image, all in the same order."""

SKIPPED_DATASETS = ("skipped_paths", "skipped_reasons")
"""One entry a skipped image."""

DATASETS = (*ROW_DATASETS, *SKIPPED_DATASETS)
"""Everything but `meta`, a scalar of JSON text that describes the rest."""

PLACES = "places"
"""In the file of a cache in parts, instead of the features: where the row stands among those of all parts."""

MANIFEST_DATASETS = (PLACES, *DATASETS[1:])
"""The datasets of such a file, but `meta`."""

CHUNK_BYTES = 512 * 1024
BLOCKS = 256
BLOCK_BYTES = 32 * 1024 * 1024
SPAN_BYTES = 1024 * 1024


def bytes_a_row(column: Any) -> int:
    """Return the bytes of a row of anything that has a shape and a dtype, such as a dataset."""
    return prod(column.shape[1:]) * np.dtype(column.dtype).itemsize


def chunk_rows(row_bytes: int) -> int:
    """Return the rows of one HDF5 chunk: a power of two, about `CHUNK_BYTES` (half of HDF5's smallest chunk cache)."""
    return 1 << max(0, (CHUNK_BYTES // max(row_bytes, 1)).bit_length() - 1)


def block_rows(rows: int, row_bytes: int) -> int:
    """Return the rows that share one digest: whole chunks, about `BLOCKS` blocks a file.

    Damage costs the rows of one block, so they should be small; each costs a call when the file is read, so
    they should be few; and several are in memory at once, so none is larger than `BLOCK_BYTES`.
    """
    chunk = chunk_rows(row_bytes)
    most = max(1, BLOCK_BYTES // (chunk * max(row_bytes, 1)))
    return chunk * min(most, max(1, -(-rows // (chunk * BLOCKS))))


def span_blocks(rows_per_block: int, row_bytes: int) -> int:
    """Return how many blocks to read or write in one call, so that small ones do not cost a call each."""
    return max(1, SPAN_BYTES // max(1, rows_per_block * row_bytes))


def problem_of_type(name: str, shape: tuple[int, ...], dtype: np.dtype) -> str | None:
    """Tell what is wrong with a dataset's type or shape, or return None."""
    text = f"{name!r} has type {dtype} and shape {shape}"
    if name == "features":
        return None if dtype in (np.dtype("<f4"), np.dtype("<f2")) and len(shape) in (2, 3) else text
    if name == "digests":
        return None if dtype == np.uint8 and len(shape) == 2 and shape[1] == 16 else text
    if name in ("labels", PLACES):
        return None if dtype == np.dtype("<i8") and len(shape) == 1 else text
    return None if dtype.kind == "S" and len(shape) == (0 if name == "meta" else 1) else text
