"""The `meta` text of a cache file: it describes everything else, and carries its own digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from ..errors import CacheError
from .layout import DATASETS
from .paths import split_name
from .spec import FORMAT_VERSION, Spec, canonical_json

_FIELDS = {
    "format": int, "spec": dict, "spec_sha256": str, "classes": list, "counts": dict, "sha256": dict,
    "rows_per_block": int, "block_sha256": dict, "failed": dict, "meta_sha256": str,
}  # fmt: skip


def seal(meta: Mapping[str, Any]) -> bytes:
    """Return `meta` as JSON text with the digest of the rest in its field ``meta_sha256``."""
    return canonical_json({**meta, "meta_sha256": _digest(meta)}).encode()


def read_meta(file: h5py.File, path: Path) -> dict[str, Any]:
    """Return the checked meta of an open file of proven structure.

    Raises
    ------
    CacheError
        If it was altered, belongs to another format version, or to another spec than the file's name says.
    """
    try:
        meta = json.loads(bytes(file["meta"][()]))
    except (OSError, RuntimeError, ValueError, RecursionError):
        raise CacheError(f"{path} is damaged: its 'meta' is no JSON. Nothing was read from it.") from None
    problem = _problem(meta, path) or _problem_of_blocks(meta, file)
    if problem:
        raise CacheError(f"{path} is not used: {problem}. Run `extract` again.")
    return meta


def _problem(meta: Any, path: Path) -> str | None:
    if not isinstance(meta, dict):
        return "its 'meta' is no JSON object"
    if isinstance(meta.get("format"), int) and meta["format"] != FORMAT_VERSION:
        return f"it has format version {meta['format']}, and this program reads {FORMAT_VERSION}"
    odd = [name for name, kind in _FIELDS.items() if not isinstance(meta.get(name), kind)]
    if odd:
        return f"its 'meta' lacks {', '.join(odd)}"
    if meta["meta_sha256"] != _digest(meta):
        return "it is damaged: the digest of its 'meta' does not match"
    if Spec(meta["spec"]).sha256 != meta["spec_sha256"]:
        return "the digest of its spec does not match"
    short = split_name(path)[1]
    if short is not None and not meta["spec_sha256"].startswith(short):
        return f"its name promises spec {short}, but it was made with {meta['spec_sha256'][:12]}"
    return None


def _problem_of_blocks(meta: dict[str, Any], file: h5py.File) -> str | None:
    size = meta["rows_per_block"]
    for name in DATASETS:
        blocks = meta["block_sha256"].get(name)
        if size < 1 or not isinstance(blocks, list) or len(blocks) != -(-len(file[name]) // size):
            return f"its 'meta' does not list the digests of {name!r}"
    return None


def _digest(meta: Mapping[str, Any]) -> str:
    text = canonical_json({name: value for name, value in meta.items() if name != "meta_sha256"})
    return hashlib.sha256(text.encode()).hexdigest()
