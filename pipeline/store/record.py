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


class Record:
    """A record whose digest matched when it was opened. Its arrays stay on disk.

    Attributes
    ----------
    header : dict

    Raises
    ------
    BrokenRecordError
        If the file is not exactly what was written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            size = _check(path)
            self.header = read_header(path)
            self._places = _places(path, self.header.pop("arrays"), size)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenRecordError(str(error)) from error

    def described(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return the type and the shape of an array, or raise `BrokenRecordError` if there is none."""
        if name not in self._places:
            raise BrokenRecordError(f"it has no {name!r}")
        dtype, shape, _ = self._places[name]
        return np.dtype(dtype), shape

    def load(self, name: str) -> np.ndarray:
        """Read an array into memory."""
        (dtype, shape), offset = self.described(name), self._places[name][2]
        return np.fromfile(self.path, dtype, prod(shape), offset=offset).reshape(shape)

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return some rows of an array. Nothing stays mapped, or memory would fill with shards."""
        (dtype, shape), offset = self.described(name), self._places[name][2]
        return np.array(np.memmap(self.path, dtype, "r", offset, shape)[rows])


def read_header(path: Path) -> dict[str, Any]:
    """Read a record's header alone, checking nothing: for listings."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 8)
            if not start.startswith(MAGIC):
                return {}
            header = json.loads(file.read(int.from_bytes(start[len(MAGIC) :], "little")))
        return header if isinstance(header, dict) else {}
    except (OSError, ValueError, RecursionError, OverflowError, MemoryError):
        return {}


def _check(path: Path) -> int:
    """Compare the digest, and return the size of all before it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BrokenRecordError("it is not a regular file")
    size, digest = path.stat().st_size - hashlib.sha256().digest_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, size, 1 << 20):
            digest.update(file.read(min(1 << 20, size - start)))
        if file.read() != digest.digest():
            raise BrokenRecordError("its SHA-256 does not match")
    return size


def _places(path: Path, described: dict, size: int) -> dict[str, tuple[str, tuple[int, ...], int]]:
    with path.open("rb") as file:
        start = file.read(len(MAGIC) + 8)
    end = len(start) + int.from_bytes(start[len(MAGIC) :], "little")
    places = {}
    for name, (dtype, shape) in described.items():
        places[name] = (dtype, tuple(shape), end)
        end += prod(shape) * np.dtype(dtype).itemsize
    if end != size or any(dtype not in _DTYPES for dtype, _, _ in places.values()):
        raise BrokenRecordError("its arrays are not of the size and types that it declares")
    return places
