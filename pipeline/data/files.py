"""Where images are, and what one may cost: paths, URLs, places inside of an archive or a table, limits."""

from __future__ import annotations

import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DataError

# What a location may go on inside: ``photos.zip/ants/1.jpg``, ``train-00000.parquet/17``
INSIDE = re.compile(r"\.(?:zip|tar|parquet|arrow)(?=/)", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*(?:://|::)", re.IGNORECASE)
_RACY_NS = 2 * 10**9


class UnreadableImageError(DataError):
    """This file gives no image; the message is a short reason that names no file."""


class MissingDecoderError(UnreadableImageError):
    """This file may give an image once a library is installed; nothing is remembered of it."""


@dataclass(frozen=True)
class Limits:
    """What one image may cost.

    Parameters
    ----------
    max_bytes : int
        Largest file read.
    max_pixels : int
        Largest width times height decoded; checked from the header, before any pixel is.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()


@contextmanager
def open_regular(path: str | Path, limits: Limits) -> Iterator[int]:
    """Open a regular file of permitted size and yield its descriptor; a FIFO never blocks.

    Raises
    ------
    UnreadableImageError
        It is missing, not readable, not a regular file, or larger than ``limits.max_bytes``.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableImageError(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("not a regular file")
        if status.st_size > limits.max_bytes:
            raise UnreadableImageError(f"{status.st_size:,} bytes, more than the limit of {limits.max_bytes:,}")
        yield descriptor
    except OSError as error:
        raise UnreadableImageError(f"cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


class Url(str):
    """A URL that is joined to as a `Path` is; `Path` itself would drop a slash."""

    __slots__ = ()

    def __truediv__(self, other: str) -> Url:
        return Url(f"{self.rstrip('/')}/{other}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.rsplit("/", 1)[-1]


Place = Path | Url


def is_url(text: str) -> bool:
    """Return whether a location is a URL rather than a path."""
    return _URL.match(text) is not None


def place(location: str | Path) -> Place:
    """Return a path or URL in the type that it is joined to with ``/``."""
    if isinstance(location, Path):
        return location
    return Url(location) if is_url(location) else Path(location).expanduser()


def absolute(location: str | Path) -> str:
    """Return where a place really is, to be remembered by; a URL is that already."""
    text = os.fspath(location)
    return text if is_url(text) else os.path.realpath(text)


def is_there(location: Place) -> bool:
    """Return whether an image is there, as far as a look at this machine's disk tells."""
    return isinstance(location, Url) or bool(INSIDE.search(str(location))) or location.is_file()


def fingerprint(status: os.stat_result) -> bytes:
    """Return what tells without reading a file that it is still the same one."""
    return struct.pack("<qqqQ", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def is_racy(status: os.stat_result) -> bool:
    """Return whether a file changed so lately that a further change might not show in its times (git's rule)."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _RACY_NS
