"""SQLite files that remember what is known: shared by processes, damaged or deleted at any time, never needed."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

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


class Memo:
    """A file of tables; a context manager. One that is damaged is begun anew, one that cannot be used is done without.

    Parameters
    ----------
    path : Path
        The file, made with its folder where missing.
    """

    tables: tuple[str, ...] = ()
    """What makes them."""

    def __init__(self, path: Path):
        self.path = path
        self.connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        self.guarded(self._open, None)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def guarded(self, action: Callable[[], T], otherwise: T) -> T:
        """Return what an action on the connection gives, or `otherwise` where the file fails it."""
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

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(os.fsencode(self.path), timeout=30)
        # A torn file after a power cut is noticed or harmless, so there is nothing to wait for.
        self.connection.execute("PRAGMA synchronous=OFF")
        for table in self.tables:
            self.connection.execute(table)

    def _begin_anew(self) -> None:
        self._close()
        try:
            for leftover in (self.path, self.path.with_name(self.path.name + "-journal")):
                leftover.unlink(missing_ok=True)
            self._open()
        except (sqlite3.Error, OSError):
            self._close()

    def _close(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None
