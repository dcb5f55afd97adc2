"""The store's way to the disk: every change goes through here, so that a test can stop each one.

One writer at a time holds a lock, which the system releases when its holder dies; errors of the disk are said so that
one knows what is kept and what to do.

What is named by its final name is complete: files are written beside it, fsynced, checked, and only then moved over
it, and the folder is fsynced too (a rename alone does not survive a power cut).
"""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..core.errors import BusyError, CacheError

_FULL = {errno.ENOSPC, errno.EDQUOT}


class DiskFile(io.RawIOBase):
    """A new file opened for writing and reading; `write` writes everything or raises.

    Parameters
    ----------
    path : Path
        Must not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def write(self, data) -> int:
        """Write all of `data` at the present position."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        return done

    def readinto(self, buffer) -> int:
        """Fill `buffer` from the present position."""
        return os.readv(self._fd, [buffer])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        """Return the present position."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file to `size` bytes."""
        size = self.tell() if size is None else size
        os.ftruncate(self._fd, size)
        return size

    def sync(self) -> None:
        """Return once the content would survive a power cut."""
        os.fsync(self._fd)

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if not self.closed:
            os.close(self._fd)
        super().close()


class Disk:
    """The file system, as far as the store changes it."""

    def create(self, path: Path) -> DiskFile:
        """Create a file that must not exist."""
        return DiskFile(path)

    def replace(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, atomically."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` a second name, where the file system can."""
        self.unlink(target)
        with suppress(OSError):
            target.hardlink_to(source)
        self.sync_folder(target.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def make_folder(self, path: Path) -> None:
        """Create a folder, with its parents, durably."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with suppress(FileExistsError):
            self.mkdir(path)
        self.sync_folder(path.parent)

    def mkdir(self, path: Path) -> None:
        """Create one folder."""
        path.mkdir()

    def sync_folder(self, path: Path) -> None:
        """Return once the names in the folder `path` would survive a power cut."""
        if os.name == "nt":  # Windows cannot open a folder; NTFS journals its names
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free(self, path: Path) -> int:
        """Return the bytes that may still be written near `path`, which need not exist."""
        while not path.exists():
            path = path.parent
        return shutil.disk_usage(path).free

    def publish(
        self, path: Path, fill: Callable[[DiskFile], None], check: Callable[[Path], None] | None = None
    ) -> None:
        """Write a file under its final name, completely or not at all.

        Parameters
        ----------
        path : Path
            The final name; its folder exists and the caller holds the lock.
        fill : callable
            Writes the content into the open file.
        check : callable, optional
            Called with the temporary file's path once it is written; raises to keep it from being published.

        Raises
        ------
        OSError
            As the system reports it; the temporary file is then gone and `path` untouched.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        self.unlink(temporary)
        try:
            with self.create(temporary) as file:
                fill(file)
                file.sync()
            if check:
                check(temporary)
            self.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                self.unlink(temporary)
            raise
        self.sync_folder(path.parent)

    def publish_csv(self, path: Path, rows: Iterable[Iterable[str]]) -> None:
        """Write a table in UTF-8 as `publish` does; bytes that `os.fsdecode` kept as surrogates are themselves."""
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows(rows)

        def fill(file: DiskFile) -> None:
            file.write(table.getvalue().encode("utf-8", "surrogateescape"))

        self.publish(path, fill)


DISK = Disk()


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
    from filelock import FileLock, Timeout  # only where a lock is taken: `--help` needs none

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


def require_room(disk: Disk, folder: Path, needed: int) -> None:
    """Raise `CacheError` unless `needed` bytes are free in `folder`."""
    free = disk.free(folder)
    if free < needed:
        raise CacheError(
            f"Not enough room in {folder}: {size(needed)} are needed and {size(free)} are free. "
            "Free some, or choose another place with --cache-dir."
        )


@contextmanager
def explained(path: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turn an error of the system, while `path` is being made, into a `CacheError` of one line."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            more = f", which still needs about {size(needed())}" if needed() else ""
            raise CacheError(
                f"The disk is full: no room for {path}{more}. Committed rows are kept; "
                "free some room and run the same command again."
            ) from error
        raise CacheError(f"{path} cannot be written: {error}. Choose another place with --cache-dir.") from error


def size(count: float) -> str:
    """Return a number of bytes as people write it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
