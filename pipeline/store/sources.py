"""Where rows that need no forward pass come from: committed shards and complete files."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CacheError
from .disk import Disk
from .file import FeatureCache
from .keys import as_digests, as_keys, to_hex
from .record import BrokenRecordError, read_record, write_record
from .spec import Spec


class RowSource(Protocol):
    """Rows by content digest, and the images that are known to fail.

    Attributes
    ----------
    keys : (K,) array
        Digest of each row.
    failed : dict
        Digest, as hexadecimal text, to the reason why the image has no row.
    """

    keys: np.ndarray
    failed: dict[str, str]

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Return which of these rows are proven to be what was written."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, in the order asked for and the precision of the cache."""

    def close(self) -> None:
        """Let go of the file."""


class FileSource:
    """The rows of a complete file, or the sound ones of a damaged one."""

    def __init__(self, cache: FeatureCache):
        self.cache, self._reader = cache, cache.reader
        self.failed = cache.meta["failed"]
        rows = np.arange(len(cache))
        self._rows = rows[~np.isin(rows // self._reader.rows_per_block, self._reader.bad_blocks("digests"))]
        self.keys = as_keys(self._reader.read("digests", self._rows))

    @classmethod
    def open(cls, path: Path, spec: Spec, row_shape: tuple[int, ...], dtype: np.dtype) -> FileSource:
        """Open `path`, or raise `CacheError` if it holds no rows of this kind that can be trusted."""
        cache = FeatureCache.open(path, spec=spec)
        if (cache.shape[1:], cache.dtype) != (row_shape, dtype):
            cache.close()
            raise CacheError(f"{path} holds {cache.dtype} rows of shape {cache.shape[1:]}, not {dtype} {row_shape}.")
        return cls(cache)

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Check the blocks of these rows; see `RowSource`."""
        blocks = self._rows[rows] // self._reader.rows_per_block
        return ~np.isin(blocks, self._reader.bad_blocks("features", np.unique(blocks)))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `RowSource`."""
        return self._reader.read("features", self._rows[rows])

    def close(self) -> None:
        """See `RowSource`."""
        self.cache.close()


class Shard:
    """The committed rows of one block.

    Attributes
    ----------
    plan_id, block : str, int
        Which block of which plan this is.
    passing : list of str
        Digests of images that failed for a reason that may pass; they are tried again in the next run.
    """

    def __init__(self, path: Path, spec: Spec, row_shape: tuple[int, ...], dtype: np.dtype):
        header, arrays = read_record(path)
        self.path = path
        self.plan_id: str = header.get("plan_id", "")
        self.block: int = header.get("block", 0)
        self.failed: dict[str, str] = header.get("failed", {})
        self.passing: list[str] = header.get("passing", [])
        if header.get("spec_sha256") != spec.sha256 or arrays.keys() != {"digests", "rows"}:
            raise BrokenRecordError("it belongs to another spec")
        self.keys, self._rows = as_keys(arrays["digests"]), arrays["rows"]
        if self._rows.dtype != dtype or self._rows.shape != (len(self.keys), *row_shape):
            raise BrokenRecordError(f"its rows are {self._rows.dtype} {self._rows.shape}")

    @staticmethod
    def write(
        disk: Disk, path: Path, spec: Spec, plan_id: str, block: int,
        keys: np.ndarray, rows: np.ndarray, failed: dict[str, str], passing: list[str],
    ) -> None:  # fmt: skip
        """Commit a block's rows and failures: once this returns, they survive a power cut."""
        header = {"spec_sha256": spec.sha256, "plan_id": plan_id, "block": block, "failed": failed, "passing": passing}
        write_record(disk, path, header, {"digests": as_digests(keys), "rows": rows})

    def holds(self, keys: np.ndarray) -> bool:
        """Tell whether this shard settles exactly these images."""
        return sorted([*to_hex(self.keys), *self.failed]) == sorted(to_hex(keys))

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Every row is: a shard whose digest does not match is not opened at all."""
        return np.ones(len(rows), bool)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """See `RowSource`."""
        return self._rows[rows]

    def close(self) -> None:
        """The mapping goes with the object."""
