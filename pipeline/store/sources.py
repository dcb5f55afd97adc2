"""Where rows that need no forward pass come from: committed shards and complete files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CacheError
from .disk import Disk
from .file import FeatureCache
from .keys import as_digests, as_keys, to_hex
from .paths import CachePlaces
from .record import BrokenRecordError, Record, write_record
from .spec import Spec


@dataclass(frozen=True)
class RowKind:
    """What one row is.

    Attributes
    ----------
    shape : tuple of int
        (D,), or (V, D) for V views.
    dtype : numpy.dtype
        Little-endian float32 or float16.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, rows: np.ndarray) -> RowKind:
        """Return the kind of these rows, the first axis being theirs."""
        dtype = rows.dtype.newbyteorder("<")
        if dtype not in (np.dtype("<f4"), np.dtype("<f2")) or rows.ndim not in (2, 3):
            raise ValueError(f"Rows are (n, D) or (n, V, D) of float32 or float16, not {rows.shape} of {rows.dtype}")
        return cls(rows.shape[1:], dtype)

    @property
    def bytes(self) -> int:
        """Size of a row."""
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


class RowSource(Protocol):
    """Rows by content digest, and the images that are known to fail.

    Attributes
    ----------
    kind : RowKind
    keys : (K,) array
        Digest of each row.
    failed : dict
        Digest, as hexadecimal text, to the reason why the image has no row.
    passing : list of str
        Digests of those that failed for a reason that may pass: they are tried again in the next run.
    """

    kind: RowKind
    keys: np.ndarray
    failed: dict[str, str]
    passing: list[str]

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Return which of these rows are proven to be what was written."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, in the order asked for."""

    def close(self) -> None:
        """Let go of the file."""


class FileSource:
    """The rows of one file, or the sound ones of a damaged one.

    Parameters
    ----------
    cache : FeatureCache
        The file; closed with this.
    whole : FeatureCache, optional
        What it is the last part of, and whose failures it tells; closed with this too.
    """

    def __init__(self, cache: FeatureCache, whole: FeatureCache | None = None):
        self.cache, self._whole = cache, cache if whole is None else whole
        self._reader = self.cache.reader
        self.kind = RowKind.of(self.cache.features)
        self.failed: dict[str, str] = self._whole.meta["failed"]
        self.passing: list[str] = []
        rows = np.arange(len(self.cache))
        self._rows = rows[~np.isin(self._reader.blocks_of(rows), self._reader.bad_blocks("digests"))]
        self.keys = as_keys(self._reader.read("digests", self._rows))

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Check the blocks of these rows; see `RowSource`."""
        blocks = self._reader.blocks_of(self._rows[rows])
        return ~np.isin(blocks, self._reader.bad_blocks("features", np.unique(blocks)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `RowSource`."""
        return self._reader.read("features", self._rows[rows])

    def close(self) -> None:
        """See `RowSource`."""
        self.cache.close()
        self._whole.close()


def sources_of(cache: FeatureCache) -> list[FileSource]:
    """Return the files that hold a cache's rows."""
    *others, last = cache.pieces
    return [*map(FileSource, others), FileSource(last, cache)]


def parts_among(sources: Sequence[RowSource], places: CachePlaces) -> dict[int, FeatureCache]:
    """Return the sources that are parts of this cache, by their position."""
    return {number: source.cache for number, source in enumerate(sources)
            if isinstance(source, FileSource) and source.cache.path.parent == places.parts}


def open_sources(path: Path, spec: Spec) -> list[FileSource]:
    """Open the files that hold rows of the cache `path`: itself, or its parts, even where it does not open."""
    with suppress(CacheError):
        return sources_of(FeatureCache.open(path, spec=spec))
    found = []
    for part in CachePlaces(path).part_files():
        with suppress(CacheError):  # that there are no rows to be had there is no error here
            found += sources_of(FeatureCache.open(part, spec=spec))
    return found


class Shard:
    """The committed rows of one block.

    Attributes
    ----------
    plan_id, block : str, int
        Which block of which plan this is.

    Raises
    ------
    BrokenRecordError
        If the file is damaged or belongs to another spec.
    """

    def __init__(self, path: Path, spec: Spec):
        self._record = Record(path)
        header = self._record.header
        if header.get("spec_sha256") != spec.sha256:
            raise BrokenRecordError("it belongs to another spec")
        self.plan_id: str = header["plan_id"]
        self.block: int = header["block"]
        self.failed: dict[str, str] = header["failed"]
        self.passing: list[str] = header["passing"]
        self.keys = as_keys(self._record.load("digests"))
        dtype, shape = self._record.described("rows")
        self.kind = RowKind(shape[1:], dtype)

    @staticmethod
    def write(disk: Disk, path: Path, header: dict, keys: np.ndarray, rows: np.ndarray) -> None:
        """Commit a block: once this returns, it survives a power cut."""
        write_record(disk, path, header, {"digests": as_digests(keys), "rows": rows})

    def holds(self, keys: np.ndarray) -> bool:
        """Tell whether this shard settles exactly these images."""
        return sorted([*to_hex(self.keys), *self.failed]) == sorted(to_hex(keys))

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Every row is: a shard whose digest does not match cannot be opened."""
        return np.ones(len(rows), bool)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `RowSource`."""
        return self._record.rows("rows", rows)

    def close(self) -> None:
        """Nothing is open."""
