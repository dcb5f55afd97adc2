"""Images that are not files in a folder: in archives and tables, and behind URLs.

A location such as ``photos.zip/ants/1.jpg``, ``train-00000.parquet/17`` or ``s3://bucket/ants/1.jpg`` names one of them
wherever a path names a file. A new kind of holder is a subclass of `Source` and a line in `CONTAINERS`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import INSIDE, absolute, is_url
from .base import Labelled, Source
from .blobs import Blob, StoreSource, blob

__all__ = ["CONTAINERS", "Labelled", "Source", "find", "is_container", "open_container", "open_store"]


def _zip(file: Blob) -> Any:
    from .archives import ZipSource

    return ZipSource(file)


def _tar(file: Blob) -> Any:
    from .archives import TarSource

    return TarSource(file)


def _parquet(file: Blob) -> Any:
    from .parquet import ParquetSource

    return ParquetSource(file)


def _arrow(file: Blob) -> Any:
    from .parquet import ArrowSource

    return ArrowSource(file)


CONTAINERS: dict[str, Callable[[Blob], Any]] = {".zip": _zip, ".tar": _tar, ".parquet": _parquet, ".arrow": _arrow}

_lock = threading.RLock()
_opened: dict[str, tuple[bytes, Source]] = {}  # by where it really is; with what told then that it was this very file
_stores: dict[str, StoreSource] = {}


def is_container(location: str | Path) -> bool:
    """Return whether a file of this name holds images."""
    return os.path.splitext(os.fspath(location))[1].lower() in CONTAINERS  # noqa: PTH122


def find(location: str | Path) -> tuple[Source, str] | None:
    """Return what holds an image and its name there; None for a file of its own.

    Raises
    ------
    DataError
        The holder cannot be opened.
    """
    text = os.fspath(location)
    for match in INSIDE.finditer(text):
        outer = text[: match.end()]
        if is_url(outer) or os.path.isfile(outer):  # noqa: PTH113  a folder may well be called photos.zip
            return open_container(outer), text[match.end() + 1 :]
    if not is_url(text):
        return None
    for root, store in _stores.items():
        if text.startswith(f"{root}/"):
            return store, text[len(root) + 1 :]
    folder, _, name = text.rpartition("/")
    return StoreSource(folder), name


def open_container(location: str | Path, refresh: bool = False) -> Source:
    """Open an archive or table, indexing it only if that was not done or it is another file by now.

    Parameters
    ----------
    location : path-like or URL
    refresh : bool
        Ask a store again too; files on this machine are looked at each time.

    Raises
    ------
    DataError
        It cannot be opened.
    """
    file = blob(text := absolute(location))
    known = _opened.get(text)
    if known and not (refresh and is_url(text)) and known[0] == file.identity():
        return known[1]
    with _lock:
        known = _opened.get(text)
        identity = file.identity()
        if known and not (refresh and is_url(text)) and known[0] == identity:
            return known[1]
        source = CONTAINERS[os.path.splitext(text)[1].lower()](file)  # noqa: PTH122
        _opened[text] = identity, source
        return source


def open_store(url: str) -> StoreSource:
    """Return the folder behind a URL; files below it are found there from now on."""
    store = StoreSource(url)
    _stores[store.location] = store
    return store
