"""Small binary files that carry their own SHA-256: the plan and the shards.

Layout: a magic line, the header's length (8 bytes, little endian), the header (JSON), the arrays
one after the other, and the SHA-256 of everything before it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .disk import Disk, DiskFile
from .spec import canonical_json

MAGIC = b"feature pipeline record 1\n"
_DTYPES = {"<f4", "<f2", "|u1"}


class BrokenRecordError(Exception):
    """A record is truncated, altered, or no record at all."""


def write_record(disk: Disk, path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write `header` and `arrays` to `path`, durably and completely or not at all."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    described = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    text = canonical_json({**header, "arrays": described}).encode()
    text += b" " * (-(len(MAGIC) + 8 + len(text)) % 64)  # aligned, so that rows can be used as they are mapped
    parts: list[Any] = [MAGIC + len(text).to_bytes(8, "little") + text]
    parts += [array.reshape(-1).view(np.uint8).data for array in arrays.values() if array.size]

    def fill(file: DiskFile) -> None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())

    disk.publish(path, fill)


def read_record(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a record, after checking its digest.

    Returns
    -------
    header : dict
    arrays : dict of numpy.ndarray
        Mapped from the file, read-only: rows are loaded when they are used.

    Raises
    ------
    BrokenRecordError
        If the file is not exactly what was written.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BrokenRecordError("not a regular file")
        content = np.memmap(path, dtype=np.uint8, mode="r")
        return _parse(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenRecordError(str(error)) from error


def read_header(path: Path) -> dict[str, Any]:
    """Read a record's header alone, checking nothing: for listings."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 8)
            header = json.loads(file.read(int.from_bytes(start[len(MAGIC) :], "little")))
        return header if isinstance(header, dict) else {}
    except (OSError, ValueError, RecursionError, OverflowError, MemoryError):
        return {}


def _parse(content: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    body, digest = content[:-32], content[-32:]
    if hashlib.sha256(body.data).digest() != digest.tobytes() or body[: len(MAGIC)].tobytes() != MAGIC:
        raise BrokenRecordError("its SHA-256 does not match")
    start = len(MAGIC) + 8
    end = start + int.from_bytes(body[start - 8 : start].tobytes(), "little")
    header = json.loads(body[start:end].tobytes())
    arrays = {}
    for name, (dtype, shape) in header.pop("arrays").items():
        if dtype not in _DTYPES:
            raise BrokenRecordError(f"unexpected type {dtype!r}")
        start, end = end, end + prod(shape) * np.dtype(dtype).itemsize
        arrays[name] = np.asarray(body[start:end]).view(dtype).reshape(shape)
    return header, arrays
