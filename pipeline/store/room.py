"""Errors of the disk, said so that one knows what is kept and what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CacheError
from .disk import Disk

_FULL = {errno.ENOSPC, errno.EDQUOT}


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
