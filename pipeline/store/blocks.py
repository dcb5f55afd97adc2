"""Digests of blocks of rows, and reads that check them.

A dataset has one SHA-256 over all its bytes, for anybody to check, and one for each block of rows:
with those, reading checks exactly what it reads, on all cores, and damage is pinned to its rows.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from ..core.errors import CacheError
from .layout import bytes_a_row, span_blocks

_WORKERS = min(8, os.cpu_count() or 1)
_WORTH_A_THREAD = 64 * 1024


def block_digest(rows: np.ndarray) -> str:
    """Return the SHA-256 of the rows' bytes, in C order, as hexadecimal text."""
    return hashlib.sha256(_buffer(rows)).hexdigest()


def _buffer(rows: np.ndarray) -> memoryview | bytes:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data if rows.size else b""


def ignore(_rows: int) -> None:
    """Take no notice of progress."""


class Digester:
    """Collects the digests of a dataset that passes by block after block."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self.blocks: list[str] = []

    def update(self, rows: np.ndarray) -> None:
        """Take the next block."""
        self._whole.update(_buffer(rows))
        self.blocks.append(block_digest(rows))

    @property
    def sha256(self) -> str:
        """The digest of everything so far."""
        return self._whole.hexdigest()


class Hashing:
    """Hashes blocks on all cores while the next are read, and compares; use it as a context manager.

    Parameters
    ----------
    expected : sequence of str
        SHA-256 of each block.
    on_good, on_bad : callable
        Told each block's number, at the latest when the context is left.
    """

    def __init__(self, expected: Sequence[str], on_good: Callable[[int], Any], on_bad: Callable[[int], Any]):
        self._expected, self._on_good, self.on_bad = expected, on_good, on_bad
        self._pending: deque[tuple[int, Callable[[], str], np.ndarray | None]] = deque()
        self._spare: list[np.ndarray] = []
        self._pool = ThreadPoolExecutor(_WORKERS)

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return an array to read a block into; reused ones spare the system from handing out fresh memory."""
        fitting = [at for at, array in enumerate(self._spare) if array.shape == shape]
        return self._spare.pop(fitting[0]) if fitting else np.empty(shape, dtype)

    def add(self, block: int, rows: np.ndarray, spare: np.ndarray | None = None) -> None:
        """Have a block hashed; afterwards the array `spare` may serve as scratch again."""
        small = rows.nbytes < _WORTH_A_THREAD
        digest = partial(block_digest, rows) if small else self._pool.submit(block_digest, rows).result
        self._pending.append((block, digest, spare))
        self._settle(leave=_WORKERS)  # more would fill memory, fewer would leave cores idle

    def _settle(self, leave: int) -> None:
        while len(self._pending) > leave:
            block, digest, spare = self._pending.popleft()
            (self._on_good if digest() == self._expected[block] else self.on_bad)(block)
            if spare is not None:
                self._spare.append(spare)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self._pool:
            if failure is None:
                self._settle(leave=0)


class CheckedReader:
    """Reads rows of an open cache file; a block's digest is checked when it is first read.

    Parameters
    ----------
    file : h5py.File
        Of proven structure.
    path : Path
        Named in messages.
    rows_per_block : int
    digests : mapping
        Dataset name to the list of its blocks' SHA-256.
    verify : bool
        False trusts the file.
    """

    def __init__(
        self, file: h5py.File, path: Path, rows_per_block: int, digests: Mapping[str, list[str]], verify: bool = True
    ):
        self.file, self.path, self.rows_per_block, self.digests = file, path, rows_per_block, digests
        self._checked = {name: np.full(len(blocks), not verify) for name, blocks in digests.items()}

    def read(self, name: str, rows: np.ndarray | None = None, view: int | None = None) -> np.ndarray:
        """Return rows of the dataset `name`.

        Parameters
        ----------
        name : str
        rows : (n,) int64 array, optional
            Positions, in any order (ascending is fastest); all by default.
        view : int, optional
            For an (N, V, D) dataset: only this view, so that the result is (n, D).

        Raises
        ------
        CacheError
            If a block does not have the digest noted for it, naming its rows.
        """
        dataset = self.file[name]
        rows = np.arange(len(dataset)) if rows is None else np.asarray(rows, dtype=np.int64)
        if np.any(np.diff(rows) <= 0):
            rows, order = np.unique(rows, return_inverse=True)
            return self.read(name, rows, view)[order]
        tail = dataset.shape[1:] if view is None else dataset.shape[2:]
        out = np.empty((len(rows), *tail), dataset.dtype)
        with self._hashing(name, partial(self._raise_damage, name)) as hashing:
            for blocks, part, whole in self._spans(name, rows, view is None):
                if self._checked[name][blocks[0]]:
                    _read_rows(dataset, rows[part], view, out[part])
                elif whole:
                    self._check_span(dataset, blocks, hashing, out[part])
                else:
                    self._read_wanted(dataset, blocks[0], rows[part], view, out[part], hashing)
        return out

    def bad_blocks(self, name: str, blocks: np.ndarray | None = None, done: Callable[[int], Any] = ignore) -> list[int]:
        """Return the blocks of `name` (of all, or of these) that are damaged; `done` is told each one's rows."""
        blocks = np.arange(len(self.digests[name])) if blocks is None else blocks
        blocks = blocks[~self._checked[name][blocks]]
        dataset, bad = self.file[name], list[int]()
        span = span_blocks(self.rows_per_block, bytes_a_row(dataset))
        with self._hashing(name, bad.append) as hashing:
            for part in np.split(blocks, np.flatnonzero(np.diff(blocks // span)) + 1):
                done(self._check_span(dataset, part.tolist(), hashing))
        return sorted(bad)

    def _check_span(
        self, dataset: h5py.Dataset, blocks: list[int], hashing: Hashing, out: np.ndarray | None = None
    ) -> int:
        """Read several blocks, from the first to the last, in one call and have them hashed; return their rows."""
        if len(blocks) < 2:
            return sum(len(self._read_block(dataset, block, hashing, out)) for block in blocks)
        bounds = [self._bounds(dataset, block) for block in blocks]
        first, last = bounds[0][0], bounds[-1][1]
        rows = np.empty((last - first, *dataset.shape[1:]), dataset.dtype) if out is None else out
        parts = [rows[start - first : stop - first] for start, stop in bounds]
        try:
            dataset.read_direct(rows, np.s_[first:last])
        except (OSError, RuntimeError):  # one of them; find out which
            for block, part in zip(blocks, parts, strict=True):
                self._read_block(dataset, block, hashing, part)
        else:
            for block, part in zip(blocks, parts, strict=True):
                hashing.add(block, part)
        return last - first

    def blocks_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the block of each of these positions."""
        return rows // self.rows_per_block

    def describe(self, name: str, block: int) -> str:
        """Name a block by its rows, counted from 0."""
        start, stop = self._bounds(self.file[name], block)
        return f"rows {start}-{stop - 1} of {name!r}"

    def _bounds(self, dataset: h5py.Dataset, block: int) -> tuple[int, int]:
        start = block * self.rows_per_block
        return start, min(start + self.rows_per_block, len(dataset))

    def _spans(self, name: str, rows: np.ndarray, views: bool) -> Iterator[tuple[list[int], slice, bool]]:
        """Yield the blocks of ascending rows, which of the rows lie in them, and whether those are all that they hold.

        Such whole blocks (of all views) come together where they lie side by side, may be read in one call, and all
        are checked or none; any other block comes by itself.
        """
        dataset, size = self.file[name], self.rows_per_block
        blocks, starts = np.unique(self.blocks_of(rows), return_index=True)
        edges = np.append(starts, len(rows))
        whole = views & (np.diff(edges) == np.minimum(size, len(dataset) - blocks * size))
        checked = self._checked[name][blocks]
        apart = (np.diff(blocks) > 1) | (checked[1:] != checked[:-1]) | ~whole[1:] | ~whole[:-1]
        most = span_blocks(self.rows_per_block, bytes_a_row(dataset))
        for run in np.split(np.arange(len(blocks)), np.flatnonzero(apart) + 1):
            for at in range(0, len(run), most):
                span = run[at : at + most]
                yield blocks[span].tolist(), slice(edges[span[0]], edges[span[-1] + 1]), bool(whole[span[0]])

    def _read_wanted(self, dataset, block: int, rows: np.ndarray, view: int | None, out, hashing: Hashing) -> None:
        """Read a block, have it hashed, and pick the wanted ones of its rows out of it."""
        found = self._read_block(dataset, block, hashing)
        wanted = rows - self._bounds(dataset, block)[0]
        out[:] = found[wanted] if view is None else found[wanted, view]

    def _read_block(self, dataset, block: int, hashing: Hashing, out: np.ndarray | None = None) -> np.ndarray:
        start, stop = self._bounds(dataset, block)
        rows = hashing.scratch((stop - start, *dataset.shape[1:]), dataset.dtype) if out is None else out
        try:
            dataset.read_direct(rows, np.s_[start:stop])
            hashing.add(block, rows, rows if out is None else None)
        except (OSError, RuntimeError):  # HDF5's own checksum
            hashing.on_bad(block)
        return rows

    def _hashing(self, name: str, on_bad: Callable[[int], Any]) -> Hashing:
        def on_good(block: int) -> None:
            self._checked[name][block] = True

        return Hashing(self.digests[name], on_good, on_bad)

    def _raise_damage(self, name: str, block: int) -> NoReturn:
        raise CacheError(
            f"{self.path} is damaged: {self.describe(name, block)} are not what was written. "
            "Run `extract` again: it keeps every sound row and computes the others again."
        )


def _read_rows(dataset: h5py.Dataset, rows: np.ndarray, view: int | None, out: np.ndarray) -> None:
    """Read ascending rows that lie close together, through the shortest range that holds them."""
    first, stop = rows[0], rows[-1] + 1
    if view is None and stop - first == len(rows):
        dataset.read_direct(out, np.s_[first:stop])
    else:
        found = dataset[first:stop] if view is None else dataset[first:stop, view]
        out[:] = found[rows - first]
