"""What a cache file holds: datasets and the pieces that they lie in, digests as keys, and the `meta` text.

`meta` describes everything else, and carries its own digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..core.errors import CacheError
from .paths import PART_NAME, split_name
from .spec import FORMAT_VERSION, Spec, canonical_json

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
_FIELDS = {
    "format": int,
    "spec": dict,
    "spec_sha256": str,
    "classes": list,
    "counts": dict,
    "failed": dict,
    "root": str,
    "rows_per_block": int,
    "sha256": dict,
    "block_sha256": dict,
    "meta_sha256": str,
}
PARTS_AT_MOST = 1000  # in one cache; all are open while it is read, and systems allow a process 1024 files
_SHA256 = re.compile("[0-9a-f]{64}")


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


class StaleCacheError(CacheError):
    """A sound cache file that does not belong to what is asked for."""


class PartError(CacheError):
    """A part of a cache is missing or not what it was; the file that lists the parts is sound."""


def seal(meta: Mapping[str, Any]) -> bytes:
    """Return `meta` as JSON text with the digest of the rest in its field ``meta_sha256``."""
    return canonical_json({**meta, "meta_sha256": _digest(meta)}).encode()


def read_meta(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return the checked meta of an open file of proven structure.

    Raises
    ------
    CacheError
        If it was altered or is incomplete.
    StaleCacheError
        If it is of another format version, or of another spec than the file's name promises.
    """
    try:
        meta = json.loads(bytes(file["meta"][()]))
        problem = _problem(meta) or _problem_of_blocks(meta, file)
    except (OSError, RuntimeError, ValueError, TypeError, RecursionError) as error:
        problem = f"its 'meta' cannot be read ({error})"
    if problem:
        raise CacheError(f"{path} is damaged: {problem}. Run `extract` again.")
    _require_name(meta, path)
    return meta


def _problem(meta: Any) -> str | None:
    if not isinstance(meta, dict) or meta.get("meta_sha256") != _digest(meta):
        return "the digest of its 'meta' does not match"
    if meta.get("format") != FORMAT_VERSION:
        return None  # another version's fields are not ours to judge
    odd = [name for name, kind in _FIELDS.items() if not isinstance(meta.get(name), kind)]
    if odd or not isinstance(meta["counts"].get("splits"), dict):
        return f"its 'meta' lacks {', '.join(odd) or 'the counts'}"
    if Spec(meta["spec"]).sha256 != meta["spec_sha256"]:
        return "the digest of its spec does not match"
    texts = [*meta["classes"], *meta["failed"].values()]
    digests_odd = any(not re.fullmatch("[0-9a-f]{32}", digest) for digest in meta["failed"])
    return "its 'meta' is malformed" if digests_odd or not all(isinstance(text, str) for text in texts) else None


def _problem_of_blocks(meta: dict[str, Any], file: h5py.File) -> str | None:
    if meta["format"] != FORMAT_VERSION:
        return None
    size = meta["rows_per_block"]
    for name in set(file) - {"meta"}:
        blocks = meta["block_sha256"].get(name)
        if size < 1 or not isinstance(blocks, list) or len(blocks) != -(-len(file[name]) // size):
            return f"its 'meta' does not list the digests of {name!r}"
    return None


def _require_name(meta: dict[str, Any], path: Path) -> None:
    if meta["format"] != FORMAT_VERSION:
        raise StaleCacheError(
            f"{path} has format version {meta['format']}, and this program reads {FORMAT_VERSION}. Run `extract` again."
        )
    short = split_name(path)[1]
    if short is not None and not meta["spec_sha256"].startswith(short):
        raise StaleCacheError(
            f"{path} was made with spec {meta['spec_sha256'][:12]}, not the {short} of its name. "
            "Give it its own name back, or run `extract` again."
        )


def _digest(meta: Mapping[str, Any]) -> str:
    text = canonical_json({name: value for name, value in meta.items() if name != "meta_sha256"})
    return hashlib.sha256(text.encode()).hexdigest()


def problem_of_parts(parts: Any) -> str | None:
    """Tell what is wrong with a list of parts, before any name in it is used."""
    if not isinstance(parts, list) or not 0 < len(parts) <= PARTS_AT_MOST:
        return f"its 'meta' must list 1 to {PARTS_AT_MOST} parts"
    for part in parts:
        if not isinstance(part, dict) or part.keys() != {"name", "rows", "meta_sha256"}:
            return "its list of parts is malformed"
        if not (isinstance(part["name"], str) and PART_NAME.fullmatch(part["name"])):
            return f"{part['name']!r} is no name of a part"
        if type(part["rows"]) is not int or not 0 < part["rows"] < 2**40:
            return f"part {part['name']} cannot have {part['rows']!r} rows"
        if not (isinstance(part["meta_sha256"], str) and _SHA256.fullmatch(part["meta_sha256"])):
            return f"part {part['name']} has no digest"
    return "a part is listed twice" if len({part["name"] for part in parts}) < len(parts) else None
