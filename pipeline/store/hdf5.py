"""HDF5 files: opening one that may be hostile without following anything in it, and writing a complete one.

It is written block by block, with digests, through a file object that HDF5 cannot hurt.

HDF5 follows soft and external links, storage in other files and virtual datasets, and loads filter plugins, all
silently. So nothing is read before every object of the file has been found to be a plain dataset of the expected
name, type and size, stored in the file itself, filtered by nothing but a checksum.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5z

from ..core.errors import CacheError
from .blocks import Digester
from .disk import DiskFile
from .layout import (
    CHUNK_BYTES,
    DATASETS,
    MANIFEST_DATASETS,
    PLACES,
    SKIPPED_DATASETS,
    block_rows,
    bytes_a_row,
    chunk_rows,
    problem_of_parts,
    problem_of_type,
    read_meta,
    seal,
    span_blocks,
)

_NAMES_AT_MOST = 64  # listed in a message
_LAYOUTS = (h5d.CONTIGUOUS, h5d.COMPACT, h5d.CHUNKED)


def open_hdf5(path: Path) -> h5py.File:
    """Open `path` for reading and check that it has a cache file's structure, reading no dataset.

    Raises
    ------
    CacheError
        If there is no such file, it is no HDF5 file, or it holds anything that a cache file does not.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise CacheError(f"There is no cache file {path}: {error.strerror}. Run `extract` first.") from None
    if not stat.S_ISREG(kind):
        raise CacheError(f"{path} is not a regular file, so it is not read.")
    try:
        file = _opened(path)
    except (OSError, RuntimeError) as error:
        raise CacheError(f"{path} cannot be opened as HDF5 ({error}).") from None
    try:
        problem = _problem(file, path.stat().st_size)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        file.close()
        raise CacheError(f"{path} is damaged or no features cache: {problem}. Nothing was read from it.")
    return file


def _opened(path: Path) -> h5py.File:
    try:
        # locked as h5py does by itself: HDF5 opens no file twice in one process under different rules
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", locking=False)  # some file systems know no locks, and published files never change


def _problem(file: h5py.File, size: int) -> str | None:
    if len(file) > _NAMES_AT_MOST:
        return f"it holds {len(file)} objects"
    names = set(file)
    expected = {*(MANIFEST_DATASETS if PLACES in names else DATASETS), "meta"}
    if names != expected:
        odd = sorted(names ^ expected)
        return f"missing or unexpected names {', '.join(map(repr, odd))}"
    for name in names:
        problem = _problem_of_link(file, name)
        if problem:
            return problem
    datasets = {name: file[name] for name in names}
    for name, dataset in datasets.items():
        problem = problem_of_type(name, dataset.shape, dataset.dtype) or _problem_of_storage(name, dataset)
        if problem:
            return problem
    if sum(dataset.id.get_storage_size() for dataset in datasets.values()) > size:
        return "it declares more bytes than it has"
    return _problem_of_lengths({name: dataset.shape for name, dataset in datasets.items()})


def _problem_of_link(file: h5py.File, name: str) -> str | None:
    if file.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        return f"{name!r} is a link to something else"
    if h5o.get_info(file.id, name.encode()).type != h5o.TYPE_DATASET:
        return f"{name!r} is not a dataset"
    return None


def _problem_of_storage(name: str, dataset: h5py.Dataset) -> str | None:
    created = dataset.id.get_create_plist()
    if created.get_external_count():
        return f"{name!r} is stored in another file"
    if created.get_layout() not in _LAYOUTS:
        return f"{name!r} is a virtual dataset"
    filters = [created.get_filter(number)[0] for number in range(created.get_nfilters())]
    if any(code != h5z.FILTER_FLETCHER32 for code in filters):
        return f"{name!r} is stored through a filter (numbers {filters})"
    if dataset.chunks is not None and dataset.id.get_num_chunks() != _chunks_expected(dataset):
        return f"{name!r} lacks some of its chunks"
    if dataset.id.get_storage_size() < dataset.nbytes:
        return f"{name!r} has shape {dataset.shape} but only {dataset.id.get_storage_size()} bytes"
    return None


def _chunks_expected(dataset: h5py.Dataset) -> int:
    return int(np.prod([-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))


def _problem_of_lengths(shapes: dict[str, tuple[int, ...]]) -> str | None:
    for group in (shapes.keys() - {*SKIPPED_DATASETS, "meta"}, SKIPPED_DATASETS):
        lengths = {name: shapes[name][0] for name in sorted(group)}
        if len(set(lengths.values())) > 1:
            return f"lengths differ: {lengths}"
    return None


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


def parts_listed(path: Path) -> dict[str, Any]:
    """Return the `meta` of a cache in parts, without looking at the parts; empty if it is not in parts.

    Raises
    ------
    CacheError
        If there is no such file, or it is damaged.
    """
    with open_hdf5(path) as file:
        meta = read_meta(file, path)
        listed = PLACES in file
    if listed and (problem := problem_of_parts(meta.get("parts"))):
        raise CacheError(f"{path} is damaged: {problem}.")
    return meta if listed else {}
