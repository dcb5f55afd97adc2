"""Open an HDF5 file without following anything that somebody hostile may have put into it.

HDF5 follows soft and external links, storage in other files and virtual datasets, and loads filter
plugins, all silently. So nothing is read before every object of the file has been found to be a plain
dataset of the expected name, type and size, stored in the file itself, filtered by nothing but a checksum.
"""

from __future__ import annotations

import stat
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5z

from ..errors import CacheError
from .layout import DATASETS, MANIFEST_DATASETS, PLACES, SKIPPED_DATASETS, problem_of_type

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
        file = h5py.File(path, "r", locking=False)  # published files never change, so there is nothing to lock
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
