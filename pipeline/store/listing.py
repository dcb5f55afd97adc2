"""What a listing says about its images: paths, labels, splits, classes, skips. Changing it computes no row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .blocks import CheckedReader
from .feature_cache import FeatureCache
from .hdf5 import Column
from .layout import as_keys
from .row_index import FAILED, RowIndex

_REASON_BYTES = 500
_ROWS_COMPARED = 1 << 16


@dataclass(frozen=True)
class ImageListing:
    """The columns that go beside the features, one entry a readable image, and the skipped images.

    Attributes
    ----------
    paths : sequence of str
        Relative to the data set's root.
    labels : (N,) int64 array
    splits : (N,) str array
    digests : (N, 16) uint8 array
    classes : tuple of str
    skipped : list of (path, reason)
    root : str
    """

    paths: Sequence[str]
    labels: np.ndarray
    splits: np.ndarray
    digests: np.ndarray
    classes: tuple[str, ...]
    skipped: list[tuple[str, str]]
    root: str

    @classmethod
    def of(
        cls,
        index: RowIndex,
        paths: Sequence[str],
        labels: np.ndarray,
        splits: np.ndarray,
        classes: Sequence[str],
        skipped: Sequence[tuple[str, str]],
        root: str,
    ) -> ImageListing:
        """Divide a listing into the images that have rows and those that are skipped."""
        good, failed = np.flatnonzero(index.state >= 0), np.flatnonzero(index.state == FAILED)
        reasons = [index.reasons[image] for image in index.image[failed].tolist()]
        broken = list(zip([paths[at] for at in failed.tolist()], reasons, strict=True))
        whole = len(good) == len(paths)
        chosen = slice(None) if whole else good  # no copies of what may be millions
        return cls(
            paths=paths if whole else [paths[at] for at in good.tolist()],
            labels=np.asarray(labels, np.int64)[chosen],
            splits=np.asarray(splits)[chosen],
            digests=index.digests(good),
            classes=tuple(classes),
            skipped=sorted([*skipped, *broken], key=lambda entry: os.fsencode(entry[0])),
            root=root,
        )

    @classmethod
    def of_part(cls, digests: np.ndarray) -> ImageListing:
        """Say nothing of images but what they are: labels, splits and names are not a part's business."""
        rows = len(digests)
        return cls([""] * rows, np.full(rows, -1), np.full(rows, "none"), digests, (), [], "")

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Every dataset of the file but the features and `meta`."""
        rows = len(self.paths)
        return {
            "labels": Column((rows,), np.dtype("<i8"), lambda start, stop: self.labels[start:stop]),
            "splits": _strings(self.splits, str.encode),
            "paths": _strings(self.paths, os.fsencode),
            "digests": Column((rows, 16), np.uint8, lambda start, stop: self.digests[start:stop]),
            "skipped_paths": _strings([path for path, _ in self.skipped], os.fsencode),
            "skipped_reasons": _strings([reason for _, reason in self.skipped], _reason),
        }

    def counts(self) -> dict[str, Any]:
        """Return the number of rows, distinct images, skipped images and images a split."""
        splits = dict(Counter(map(str, self.splits)))
        distinct = len(np.unique(as_keys(self.digests)))
        return {"rows": len(self.paths), "distinct": distinct, "skipped": len(self.skipped), "splits": splits}

    def displaces(self, cache: FeatureCache) -> bool:
        """Tell whether `cache` describes another folder, still there, and has rows that this listing lacks."""
        other = cache.meta["root"] or self.root
        return (
            other != self.root
            and Path(other).exists()
            and not np.isin(as_keys(cache.digests), as_keys(self.digests)).all()
        )

    def describes(self, cache: FeatureCache) -> bool:
        """Tell whether `cache` says exactly this already."""
        same = (cache.meta["root"], cache.classes) == (self.root, self.classes)
        return same and all(_holds(cache.reader, name, column) for name, column in self.columns.items())


def _holds(reader: CheckedReader, name: str, column: Column) -> bool:
    """Tell whether a file's dataset is this column, some rows at a time."""
    dataset, rows = reader.file[name], column.shape[0]
    if (dataset.shape, dataset.dtype) != (column.shape, column.dtype):
        return False
    for start in range(0, rows, _ROWS_COMPARED):
        stop = min(start + _ROWS_COMPARED, rows)
        if not np.array_equal(reader.read(name, np.arange(start, stop)), column.rows(start, stop)):
            return False
    return True


def _reason(text: str) -> bytes:
    """Return a reason as one line of bounded length, whatever an image library put into it."""
    line = " ".join(text.replace("\0", " ").split())
    return line.encode(errors="backslashreplace")[:_REASON_BYTES].decode(errors="ignore").encode()


def _strings(values: Sequence[str] | np.ndarray, encode: Callable[[str], bytes]) -> Column:
    width = max((len(encode(value)) for value in values), default=1) or 1
    dtype = h5py.string_dtype("utf-8", width)

    def rows(start: int, stop: int) -> np.ndarray:
        return np.array([encode(value) for value in values[start:stop]], dtype=dtype)

    return Column((len(values),), dtype, rows)
