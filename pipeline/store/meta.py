"""The `meta` text of a cache file: it describes everything else, and carries its own digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from ..errors import CacheError
from .paths import split_name
from .spec import FORMAT_VERSION, Spec, canonical_json

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
