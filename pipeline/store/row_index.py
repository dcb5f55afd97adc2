"""Which rows exist and where: in complete files and committed shards, looked up by the digest of the image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.errors import CacheError
from .disk import Disk
from .feature_cache import FeatureCache
from .layout import as_digests, as_keys, find, from_hex, to_hex
from .paths import CachePlaces
from .plan import BrokenRecordError, Record, write_record
from .spec import Spec

UNKNOWN, FAILED = -1, -2


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


# what an earlier version said of formats that this one reads
OUTDATED_REASONS = frozenset(("not an image of a known format (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM)",))


class RowIndex:
    """The distinct images of a listing.

    Parameters
    ----------
    digests : (N, 16) uint8 array
        Content digest of each listed image.

    Attributes
    ----------
    keys : (U,) array
        Distinct digests, ascending.
    first : (U,) int64 array
        Where each is listed first.
    image : (N,) int64 array
        The distinct image behind each listed one.
    source, row : (U,) int arrays
        Number of the source that holds its row (or `UNKNOWN`, `FAILED`), and the row there.
    reasons : dict
        Position among `keys` to the reason why that image failed.
    kind : RowKind or None
        Of all rows; None as long as there are none.
    """

    def __init__(self, digests: np.ndarray):
        self.keys, self.first, self.image = np.unique(as_keys(digests), return_index=True, return_inverse=True)
        self.source = np.full(len(self.keys), UNKNOWN, np.int32)
        self.row = np.zeros(len(self.keys), np.int64)
        self.reasons: dict[int, str] = {}
        self.kind: RowKind | None = None
        self.sources: list[RowSource] = []
        self._passing: set[int] = set()

    def learn(self, source: RowSource, *, failures: bool = True) -> None:
        """Note what `source` holds of the images that are still unknown; it is kept open."""
        self.sources.append(source)
        if self.kind in (None, source.kind) and len(source.keys):
            self._learn_rows(source)
        if failures and source.failed:
            self._learn_failures(source)

    def _learn_rows(self, source: RowSource) -> None:
        at, there = find(self.keys, source.keys)
        rows = np.flatnonzero(there & (self.source[at] == UNKNOWN))
        rows = rows[source.sound(rows)][::-1]  # of duplicates within a source, the first is noted last and stays
        self.source[at[rows]], self.row[at[rows]] = len(self.sources) - 1, rows
        self.kind = source.kind if len(rows) else self.kind

    def _learn_failures(self, source: RowSource) -> None:
        at, there = find(self.keys, from_hex(source.failed))
        for image, listed, (digest, reason) in zip(at.tolist(), there.tolist(), source.failed.items(), strict=True):
            if listed and self.source[image] == UNKNOWN and reason not in OUTDATED_REASONS:
                self.source[image], self.reasons[image] = FAILED, reason
                self._passing |= {image} if digest in source.passing else set()

    def forget(self, images: np.ndarray) -> None:
        """Make these images unknown again."""
        self.source[images] = UNKNOWN
        for image in images.tolist():
            self.reasons.pop(image, None)

    @property
    def unknown(self) -> np.ndarray:
        """The unknown images' keys, in the order of their first listing."""
        images = np.flatnonzero(self.source == UNKNOWN)
        return self.keys[images[np.argsort(self.first[images], kind="stable")]]

    @property
    def state(self) -> np.ndarray:
        """(N,) int32 array: the source of each listed image's row, or `UNKNOWN`, or `FAILED`."""
        return self.source[self.image]

    def digests(self, listed: np.ndarray) -> np.ndarray:
        """Return the digests of these listing positions."""
        return as_digests(self.keys[self.image[listed]])

    def digests_of(self, images: np.ndarray) -> np.ndarray:
        """Return the digests of these distinct images."""
        return as_digests(self.keys[images])

    def read(self, images: np.ndarray) -> np.ndarray:
        """Return the rows of these distinct images, which must have some."""
        assert self.kind is not None
        out = np.empty((len(images), *self.kind.shape), self.kind.dtype)
        numbers, rows = self.source[images], self.row[images]
        for number in np.unique(numbers):
            mine = numbers == number
            out[mine] = self.sources[number].read(rows[mine])
        return out

    def remembered(self) -> dict[str, str]:
        """Return the failures that belong to the images' content: digest, as hexadecimal text, to reason."""
        images = [image for image in self.reasons if image not in self._passing]
        return dict(zip(to_hex(self.keys[images]), map(self.reasons.__getitem__, images), strict=True))

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True)
class Survey:
    """What is there for a listing.

    Attributes
    ----------
    to_compute : (n,) int64 array
        Listing positions of the distinct images without a row.
    listed, reused, duplicates, known_failures : int
        As in `Plan`.
    in_parts : int
        Listed images whose row lies in a part of this very cache, which is not written again.
    row_bytes : int
        Size of the rows that were found; 0 if none was.
    """

    to_compute: np.ndarray
    listed: int
    reused: int
    duplicates: int
    known_failures: int
    in_parts: int
    row_bytes: int

    def room(self, row_bytes: int) -> int:
        """Return the bytes that a run writes: the pending rows' shards, and the complete file beside them."""
        written = len(self.to_compute) + self.listed - self.in_parts
        return written * row_bytes + self.listed * 300 + (1 << 20)


def survey(path: Path, spec: Spec, digests: np.ndarray, *, retry_failed: bool = False) -> Survey:
    """Look for the rows of images, by their digests (N, 16), wherever `CacheWriter.plan` does."""
    index, places = RowIndex(digests), CachePlaces(path)
    try:
        for file in (path, *places.siblings(), *places.others(), *places.set_aside()):
            for source in open_sources(file, spec):
                index.learn(source, failures=not retry_failed)
        for shard in places.shards():
            with suppress(BrokenRecordError):
                index.learn(Shard(shard, spec), failures=not retry_failed)
        state = index.state
        missing = np.isin(index.keys, index.unknown)
        parts = list(parts_among(index.sources, places))
        return Survey(
            to_compute=np.sort(index.first[missing]),
            listed=len(index.image),
            reused=int((state >= 0).sum()),
            duplicates=len(index.image) - len(index.keys),
            known_failures=int((state == FAILED).sum()),
            in_parts=int(np.isin(state, parts).sum()),
            row_bytes=index.kind.bytes if index.kind else 0,
        )
    finally:
        index.close()
