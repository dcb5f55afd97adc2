"""A folder behind a URL: whatever fsspec reads."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import DataError
from ..reader import Limits, UnreadableImageError
from .base import Source
from .blobs import file_system, mark_of, why
from .names import verdict


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
