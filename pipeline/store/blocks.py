"""Digests of blocks of rows, and reads that check them.

A dataset has one SHA-256 over all its bytes, for anybody to check, and one for each block of rows:
with those, reading checks exactly what it reads, on all cores, and damage is pinned to its rows.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from ..errors import CacheError

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
        with self._checking(name, partial(self._raise_damage, name)) as check:
            for block, part in self._parts(rows):
                out[part] = self._read_part(dataset, name, block, rows[part], view, check)
        return out

    def bad_blocks(self, name: str, blocks: np.ndarray | None = None, done: Callable[[int], Any] = ignore) -> list[int]:
        """Return the blocks of `name` (of all, or of these) that are damaged; `done` is told each one's rows."""
        blocks = np.arange(len(self.digests[name])) if blocks is None else blocks
        bad: list[int] = []
        with self._checking(name, bad.append) as check:
            for block in blocks[~self._checked[name][blocks]].tolist():
                try:
                    rows = self._whole_block(self.file[name], block)
                except (OSError, RuntimeError):  # HDF5's own checksum
                    bad.append(block)
                else:
                    check(rows, block)
                    done(len(rows))
        return sorted(bad)

    def blocks_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the block of each of these positions."""
        return rows // self.rows_per_block

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[int, slice]]:
        blocks, starts = np.unique(self.blocks_of(rows), return_index=True)
        stops = [*starts.tolist(), len(rows)][1:]
        for block, start, stop in zip(blocks.tolist(), starts.tolist(), stops, strict=True):
            yield block, slice(start, stop)

    def _whole_block(self, dataset: h5py.Dataset, block: int) -> np.ndarray:
        return dataset[block * self.rows_per_block : (block + 1) * self.rows_per_block]

    def _read_part(self, dataset, name, block, rows, view, check) -> np.ndarray:
        if self._checked[name][block]:
            first = rows[0]
            found = dataset[first : rows[-1] + 1] if view is None else dataset[first : rows[-1] + 1, view]
        else:
            first = block * self.rows_per_block
            try:
                found = self._whole_block(dataset, block)
            except (OSError, RuntimeError):
                self._raise_damage(name, block)
            check(found, block)
            found = found if view is None else found[:, view]
        return found if len(found) == len(rows) else found[rows - first]

    @contextmanager
    def _checking(self, name: str, on_bad: Callable[[int], Any]) -> Iterator[Callable[[np.ndarray, int], None]]:
        """Hash blocks on all cores while the next are read; leave only when every one has been compared."""
        pending: deque[tuple[int, Callable[[], str]]] = deque()

        def settle(leave: int) -> None:
            while len(pending) > leave:
                block, digest = pending.popleft()
                if digest() == self.digests[name][block]:
                    self._checked[name][block] = True
                else:
                    on_bad(block)

        def check(rows: np.ndarray, block: int) -> None:
            if rows.nbytes < _WORTH_A_THREAD:
                pending.append((block, partial(block_digest, rows)))
            else:
                pending.append((block, pool.submit(block_digest, rows).result))
            settle(leave=2 * _WORKERS)

        with ThreadPoolExecutor(_WORKERS) as pool:
            yield check
            settle(leave=0)

    def _raise_damage(self, name: str, block: int) -> NoReturn:
        raise CacheError(
            f"{self.path} is damaged: {self.describe(name, block)} are not what was written. "
            "Run `extract` again: it sets the file aside and keeps every sound row."
        )

    def describe(self, name: str, block: int) -> str:
        """Name a block by its rows, counted from 0."""
        start = block * self.rows_per_block
        return f"rows {start}-{min(start + self.rows_per_block, len(self.file[name])) - 1} of {name!r}"
