"""What a run has to compute, in which blocks; kept on disk so that a resumed run forms the same ones.

The plan and the shards are small binary files that carry their own SHA-256.

Their layout: a magic line, the header's length (8 bytes, little endian), the header (JSON), the arrays one after the
other, and the SHA-256 of everything before it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .disk import Disk, DiskFile
from .layout import as_digests, as_keys
from .spec import Spec, canonical_json

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


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes
    ----------
    to_compute : (n,) int64 array
        Listing positions of the distinct images that need a forward pass, in listing order.
    blocks : list of int64 arrays
        The same, divided: the images of a block are computed, and committed, together. The division was
        fixed by the first of several interrupted runs, so rows do not depend on where they were interrupted.
    reused : int
        Listed images whose rows were found, wherever it was.
    resumed : int
        Distinct images among them whose rows an interrupted run had committed.
    duplicates : int
        Listed images that are, byte for byte, another listed image; they share its row.
    known_failures : int
        Listed images that failed before under the same spec; they are not tried again.
    """

    to_compute: np.ndarray
    blocks: list[np.ndarray]
    reused: int
    resumed: int
    duplicates: int
    known_failures: int


class BlockPlan:
    """The images to compute and their division into blocks.

    Parameters
    ----------
    spec : Spec
    keys : (n,) array
        Digests of distinct images, in the order in which they are computed.
    size : int
        Images a block.

    Attributes
    ----------
    id : str
        Equal plans have equal ones.
    blocks : list of arrays
        The keys of each block.
    """

    def __init__(self, spec: Spec, keys: np.ndarray, size: int):
        self.spec, self.keys, self.size = spec, keys, size
        text = f"{spec.sha256} {size} ".encode() + as_digests(keys).tobytes()
        self.id = hashlib.sha256(text).hexdigest()[:32]
        self.blocks = [keys[start : start + size] for start in range(0, len(keys), size)]

    def save(self, disk: Disk, path: Path) -> None:
        """Write the plan, durably."""
        header = {"spec_sha256": self.spec.sha256, "size": self.size}
        write_record(disk, path, header, {"digests": as_digests(self.keys)})

    @classmethod
    def load(cls, path: Path, spec: Spec) -> BlockPlan | None:
        """Read a plan; None if there is none that is sound and for this spec."""
        try:
            record = Record(path)
            usable = record.header["spec_sha256"] == spec.sha256
            return cls(spec, as_keys(record.load("digests")), record.header["size"]) if usable else None
        except (BrokenRecordError, KeyError):
            return None


def block_size(images: int, accelerated: bool = False) -> int:
    """Return how many images make a block.

    Few images make small blocks, so that every worker has some and a kill costs little; many make
    blocks of up to 1024, so that there are not too many shards. An accelerator computes the rows of such a block
    in less time than the disk takes to confirm one, about a tenth of a second: it gets sixteen blocks of whole
    batches, of up to 4096.
    """
    if accelerated:
        return min(4096, max(128, -(-images // (16 * 128)) * 128))
    return min(1024, max(32, -(-images // (64 * 32)) * 32))
