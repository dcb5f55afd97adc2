"""The memory of content digests: an SQLite file that may be shared, damaged or deleted at any time."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Entry = tuple[bytes, bytes, bytes]  # path, digest, seal

_TABLE = "CREATE TABLE IF NOT EXISTS digests_v1 (path BLOB PRIMARY KEY, digest BLOB, seal BLOB) WITHOUT ROWID"
_MOST_PARAMETERS = 900  # in one statement; older SQLite builds allow 999


class Memo:
    """Digests by path and fingerprint; a context manager.

    Nothing depends on it: a file that is damaged is begun anew, one that cannot be used is done without. SQLite
    does not notice flipped bits, so each entry carries a seal over its path, fingerprint and digest; comparing it
    is also what compares the fingerprint.

    Parameters
    ----------
    path : Path
        The file, made with its folder where missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Memo:
        self._guarded(self._open, None)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def look_up(self, fingerprints: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the digests of those files that are known by exactly this fingerprint.

        Parameters
        ----------
        fingerprints : mapping of str to bytes
            By absolute path.
        """
        names = {os.fsencode(file): file for file in fingerprints}
        found = {}
        rows: list[Entry] = []
        for name, digest, seal in self._guarded(lambda: self._select(list(names)), rows):
            file = names[name]
            if seal == _seal(name, fingerprints[file], digest):
                found[file] = digest
        return found

    def add(self, entries: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Remember digests, each entry an absolute path, a fingerprint and a digest."""
        rows = [(name := os.fsencode(file), digest, _seal(name, mark, digest)) for file, mark, digest in entries]
        if rows:
            self._guarded(lambda: self._insert(rows), None)

    def _select(self, names: list[bytes]) -> list[Entry]:
        rows: list[Entry] = []
        if self._connection:
            for start in range(0, len(names), _MOST_PARAMETERS):
                some = names[start : start + _MOST_PARAMETERS]
                marks = ",".join("?" * len(some))
                rows += self._connection.execute(f"SELECT * FROM digests_v1 WHERE path IN ({marks})", some)
        return rows

    def _insert(self, rows: list[Entry]) -> None:
        if self._connection:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO digests_v1 VALUES (?, ?, ?)", rows)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(os.fsencode(self.path), timeout=30)
        # A torn file after a power cut is noticed or harmless, so there is nothing to wait for.
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(_TABLE)

    def _guarded(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except (sqlite3.OperationalError, OSError):  # locked for long, disk full, not ours to write
            self._close()
        except sqlite3.DatabaseError:  # damaged, or another kind of file
            self._begin_anew()
        return otherwise

    def _begin_anew(self) -> None:
        self._close()
        try:
            for leftover in (self.path, self.path.with_name(self.path.name + "-journal")):
                leftover.unlink(missing_ok=True)
            self._open()
        except (sqlite3.Error, OSError):
            self._close()

    def _close(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


def _seal(name: bytes, fingerprint: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(name + b"\0" + fingerprint + digest, digest_size=8).digest()
