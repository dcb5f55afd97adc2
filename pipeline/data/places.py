"""Where images are: a path, a URL, and either may go on inside an archive or a table."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What a location may go on inside: ``photos.zip/ants/1.jpg``, ``train-00000.parquet/17``
INSIDE = re.compile(r"\.(?:zip|tar|parquet|arrow)(?=/)", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*(?:://|::)", re.IGNORECASE)


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
