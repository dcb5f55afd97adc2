"""One file that is read at any place, on this machine or behind a URL; and a folder behind a URL."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import DataError
from ..files import Limits, UnreadableImageError, fingerprint, is_racy, is_url
from .base import Source, verdict

# The stores that images are read from. Not whatever fsspec knows: a cache that somebody else made names its root, and
# some of fsspec's file systems are recipes rather than places.
PROTOCOLS = frozenset(
    ("memory", "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oci", "oss", "r2", "tos",
     "sftp", "ssh", "hdfs", "webhdfs", "smb")
)
_CACHES = frozenset(("simplecache", "filecache", "blockcache"))  # of fsspec's own, before the URL and ``::``
REMOTE = "URLs need fsspec: pip install 'image-feature-pipeline[remote]' (and s3fs for s3://, gcsfs for gs://)."


class Blob(ABC):
    """A file of known place; opened anew for each read, so that nothing stays open."""

    location: str

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open it for reading at any place; raises `OSError` or `DataError`."""

    @abstractmethod
    def fetch(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer at the end; raises `UnreadableImageError`."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Return what tells that the file is still the same one; empty where nothing does."""

    def identity(self) -> bytes:
        """Return what tells of a file on this machine that it was not replaced meanwhile."""
        return b""


class LocalBlob(Blob):
    """A file on this machine."""

    def __init__(self, location: str):
        self.location = location

    def open(self) -> BinaryIO:
        return Path(self.location).open("rb")

    def fetch(self, start: int, length: int) -> bytes:
        try:
            with self.open() as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise UnreadableImageError(f"cannot be read: {error.strerror or error}") from error

    def fingerprint(self) -> bytes:
        try:
            status = Path(self.location).stat()
        except OSError:
            return b""
        return b"" if is_racy(status) else fingerprint(status)

    def identity(self) -> bytes:
        try:
            return fingerprint(Path(self.location).stat())
        except OSError:
            return b""


class RemoteBlob(Blob):
    """A file behind a URL."""

    def __init__(self, location: str):
        self.location = location
        self._system, self._path = file_system(location)

    def open(self) -> BinaryIO:
        return self._system.open(self._path, "rb")

    def fetch(self, start: int, length: int) -> bytes:
        try:
            content = self._system.cat_file(self._path, start=start, end=start + length)
        except Exception as error:  # OSError, and whatever the store's own library raises
            raise UnreadableImageError(f"cannot be read: {why(error)}") from error
        if len(content) > length:
            raise UnreadableImageError("the server sends whole files only, no ranges of them")
        return content

    def fingerprint(self) -> bytes:
        try:
            return mark_of(self._system.info(self._path))
        except Exception:  # reading it will say why
            return b""


def blob(location: str) -> Blob:
    """Return the file at a path or URL, without opening it."""
    return RemoteBlob(location) if is_url(location) else LocalBlob(location)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, which keeps no listing in memory, and the path in it.

    Raises
    ------
    DataError
        The protocol is none that images are read from, or a library for it is missing.
    """
    *caches, last = url.split("::")
    protocol = last.partition("://")[0]
    if strange := [name for name in (*caches, protocol) if name not in (_CACHES if name in caches else PROTOCOLS)]:
        raise DataError(f"No images are read from {strange[0]!r} ({url!r}). Known: {', '.join(sorted(PROTOCOLS))}.")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DataError(REMOTE) from error
    try:
        return url_to_fs(url, **({} if caches else {"use_listings_cache": False}))
    except ImportError as error:
        raise DataError(f"{url!r}: {error}") from error
    except Exception as error:
        raise DataError(f"Cannot reach {url!r}: {why(error)}.") from error


def mark_of(info: dict[str, Any]) -> bytes:
    """Return a fingerprint from what a store tells of a file; empty if it tells nothing but a size."""
    known = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "last_modified", "mtime",
             "updated", "created", "commit_hash")  # fmt: skip
    told = next((info[name] for name in known if info.get(name)), None)
    if told is None:
        return b""
    told = told.timestamp() if hasattr(told, "timestamp") else told  # listings and questions differ in this
    return hashlib.blake2b(f"{info.get('size')} {told}".encode(), digest_size=16).digest()


@contextmanager
def refusing(location: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises at a file that it cannot read into one line that says what was wanted of it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # OSError, tarfile's, struct's, pyarrow's, and whatever a store's library raises
        raise DataError(f"{location} cannot be read as {kind}: {why(error)}.") from error


def why(error: BaseException) -> str:
    """Return one line about what went wrong, whatever library says so."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    text = " ".join(text.split())[:200]
    if "range requests" in text:  # fsspec's words
        return "the server sends whole files only; put simplecache:: before the URL to read a copy of it"
    return f"there is no such file ({text})" if isinstance(error, FileNotFoundError) else text


def size_of(file: BinaryIO) -> int:
    """Return the size of an open file."""
    return file.seek(0, os.SEEK_END)


class StoreSource(Source):
    """Files below a URL. One that the listing told about needs no further question before its digest is known.

    Parameters
    ----------
    location : str
        Such as ``s3://bucket/photos`` or ``https://host/photos``.
    """

    def __init__(self, location: str):
        self.location = location.rstrip("/")
        self._system, self._path = file_system(self.location)
        self._marks: dict[str, bytes] = {}

    def entries(self) -> Iterator[tuple[str, str]]:
        root = self._path.rstrip("/")
        self._marks = {}
        try:
            for _, _, files in self._system.walk(root, detail=True, on_error="raise"):
                for info in files.values():
                    name = info["name"][len(root) :].lstrip("/")
                    reason = verdict(name)
                    if reason is None:
                        continue
                    if not reason and (mark := mark_of(info)):
                        self._marks[name] = mark
                    yield name, reason
        except Exception as error:  # OSError, and whatever the store's own library raises
            raise DataError(f"Cannot list {self.location}: {why(error)}.") from error

    def read(self, name: str, limits: Limits) -> bytes:
        try:
            # one byte more than the limit is enough to tell; most stores then send no more
            with self._system.open(self._full(name), "rb", block_size=0) if self._streams() else \
                    self._system.open(self._full(name), "rb") as file:  # fmt: skip
                content = file.read(limits.max_bytes + 1)
        except Exception as error:
            raise UnreadableImageError(f"cannot be read: {why(error)}") from error
        if len(content) > limits.max_bytes:
            raise UnreadableImageError(f"more than the limit of {limits.max_bytes:,} bytes")
        return content

    def fingerprint(self, name: str, anew: bool = False) -> bytes:
        if name in self._marks and not anew:
            return self._marks[name]
        try:
            return mark_of(self._system.info(self._full(name)))
        except Exception:  # reading it will say why
            return b""

    def _full(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path

    def _streams(self) -> bool:
        """Return whether files come as one stream, where a question about their size first would be wasted."""
        return self.location.startswith(("http://", "https://"))
