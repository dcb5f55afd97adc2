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
# The file may be sound, but we cannot have it: held by another process, not ours to write, disk full…
_NOT_DAMAGE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
}
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
        files = {os.fsencode(file): file for file in fingerprints}
        found = {}
        rows: list[Entry] = []
        for name, digest, seal in self._guarded(lambda: self._select(list(files)), rows):
            file = files.get(name)
            if file and isinstance(digest, bytes) and seal == _seal(name, fingerprints[file], digest):
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
                query = f"SELECT path, digest, seal FROM digests_v1 WHERE path IN ({marks})"
                rows += self._connection.execute(query, some)
        return rows

    def _insert(self, rows: list[Entry]) -> None:
        if self._connection:
            with self._connection:
                change = "INSERT OR REPLACE INTO digests_v1 (path, digest, seal) VALUES (?, ?, ?)"
                self._connection.executemany(change, rows)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(os.fsencode(self.path), timeout=30)
        # A torn file after a power cut is noticed or harmless, so there is nothing to wait for.
        self._connection.execute("PRAGMA synchronous=OFF")
        self._connection.execute(_TABLE)

    def _guarded(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except OSError:
            self._close()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                self._close()
            else:
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
