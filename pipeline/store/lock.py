"""One writer a cache: the system releases the lock when its holder dies, however it dies."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError
from .disk import DISK, Disk
from .paths import CachePlaces


def acquire(cache: Path, disk: Disk = DISK) -> FileLock:
    """Take the lock of the cache file `cache` at once, or say who is asked to wait.

    Returns
    -------
    FileLock
        To be released by its `release` method.

    Raises
    ------
    BusyError
        If another process (or another writer in this one) holds it.
    """
    place = CachePlaces(cache).lock
    disk.make_folder(place.parent)
    # thread_local=False: the thread that finishes need not be the one that began
    lock = FileLock(place, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"Another process is writing {cache}. Wait until it has finished, or stop it: its committed rows are kept."
        ) from None
    return lock
