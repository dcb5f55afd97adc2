"""Write the complete file: block by block, with digests, through a file object that HDF5 cannot hurt."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from .blocks import Digester
from .disk import DiskFile
from .layout import CHUNK_BYTES, block_rows, bytes_a_row, chunk_rows, span_blocks
from .meta import seal


@dataclass(frozen=True)
class Column:
    """A dataset to write.

    Attributes
    ----------
    shape, dtype
        As HDF5 shall have them.
    rows : callable
        ``rows(start, stop)`` returns that part.
    """

    shape: tuple[int, ...]
    dtype: Any
    rows: Callable[[int, int], np.ndarray]


class Sink(io.RawIOBase):
    """Hands HDF5's writes to a file until one fails, then keeps that error and swallows the rest.

    HDF5 does not survive a failing write (it crashes, or leaves a file that opens with wrong rows); it never
    learns of it here, and the half-written file is discarded by the caller, who asks for `error`.
    """

    def __init__(self, file: DiskFile):
        self._file = file
        self.error: BaseException | None = None

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            if self.error is None:
                action()
        except BaseException as error:  # Ctrl-C must not unwind through HDF5 either
            self.error = error

    def write(self, data) -> int:
        """Write `data`, or pretend to."""
        self._try(lambda: self._file.write(data))
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Resize, or pretend to."""
        self._try(lambda: self._file.truncate(size))
        return size or 0

    def readinto(self, buffer) -> int:
        """Read back what was written."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def check(self) -> None:
        """Raise the first error that occurred, if any."""
        if self.error:
            raise self.error


def write_hdf5(
    file: DiskFile, columns: Mapping[str, Column], meta: Mapping[str, Any], written: Callable[[int], Any]
) -> None:
    """Write a complete cache file's content.

    Parameters
    ----------
    file : DiskFile
        New and empty.
    columns : mapping
        Every dataset but `meta`, the features or their places first.
    meta : mapping
        Becomes `meta`, with the digests of all columns.
    written : callable
        Called with the number of features rows just written.

    Raises
    ------
    OSError
        The first that a write met, a full disk for example.
    """
    first = next(iter(columns.values()))
    widest = first if "features" in columns else max(columns.values(), key=bytes_a_row)
    size = block_rows(first.shape[0], bytes_a_row(widest))
    sink = Sink(file)
    digests: dict[str, Digester] = {}
    with h5py.File(sink, "w", libver=("v110", "v110"), driver="fileobj") as hdf5:
        for name, column in columns.items():
            digests[name] = _write_column(hdf5, name, column, size, sink, written)
        text = seal({
            **meta,
            "rows_per_block": size,
            "sha256": {name: digest.sha256 for name, digest in digests.items()},
            "block_sha256": {name: digest.blocks for name, digest in digests.items()},
        })  # fmt: skip
        hdf5.create_dataset("meta", data=np.array(text, dtype=h5py.string_dtype("utf-8", len(text))))
    sink.check()


def _write_column(hdf5, name: str, column: Column, size: int, sink: Sink, written: Callable[[int], Any]) -> Digester:
    rows, digester = column.shape[0], Digester()
    options: dict[str, Any] = {}
    if rows:  # HDF5 has no chunks, so no checksums, for a dataset of no rows
        options = {"chunks": _chunks(column, size), "fletcher32": True}
    dataset = hdf5.create_dataset(name, column.shape, column.dtype, **options)
    span = size * span_blocks(size, bytes_a_row(column))
    for start in range(0, rows, span):
        part = column.rows(start, min(start + span, rows))
        dataset[start : start + len(part)] = part
        for first in range(0, len(part), size):
            digester.update(part[first : first + size])
        sink.check()
        if name == "features":
            written(len(part))
    return digester


def _chunks(column: Column, size: int) -> tuple[int, ...]:
    row_bytes = bytes_a_row(column)
    rows = min(column.shape[0], size if size * row_bytes <= CHUNK_BYTES else chunk_rows(row_bytes))
    if len(column.shape) == 3:  # a chunk holds one view, so that one view can be read by itself
        return (rows, 1, column.shape[2])
    return (rows, *column.shape[1:])
