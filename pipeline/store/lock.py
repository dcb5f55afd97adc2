"""One writer at a time: the system releases the lock when its holder dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BusyError
from .disk import DISK, Disk


@contextmanager
def hold(lock: Path, what: str, disk: Disk = DISK) -> Iterator[None]:
    """Hold the lock file `lock` for the length of a `with` block.

    The file is never deleted, because two holders could then lock two files of one name.

    Parameters
    ----------
    lock : Path
        Created, with its folder, if need be.
    what : str
        What it guards, for the message: ``"the run 'first'"``.

    Raises
    ------
    BusyError
        At once, if another process (or another holder in this one) has it.
    """
    disk.make_folder(lock.parent)
    # thread_local=False: the thread that finishes need not be the one that began
    held = FileLock(lock, timeout=0, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        raise BusyError(
            f"Another process is writing {what}. Wait until it has finished, or stop it: what it has committed is kept."
        ) from None
    try:
        yield
    finally:
        held.release()
