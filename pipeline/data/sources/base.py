"""What holds images without being a folder of files: its interface, and which names in it are to be trusted."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..files import Limits
from ..listing import is_hidden, why_no_image_name

_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Labelled:
    """Images whose labels are told by what holds them, not by their folders.

    Attributes
    ----------
    names : sequence of str, length N
    labels : (N,) int64 array
        An index into `classes`, or -1.
    classes : tuple of str
        In the order that the holder gave them; some may have no image.
    """

    names: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]


class Source(ABC):
    """Images inside something. Thread-safe; any number of threads read at once.

    Attributes
    ----------
    location : str
        The absolute path or URL of what holds the images; ``location/name`` is where one of them is.
    """

    location: str

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield each file's name, with ``/``, and why it is not to be used; an empty reason for an image."""

    @abstractmethod
    def read(self, name: str, limits: Limits) -> bytes:
        """Return an image file's content, never more than ``limits.max_bytes`` of it.

        Raises
        ------
        UnreadableImageError
            It is not there, cannot be read, is damaged, or is too large.
        """

    @abstractmethod
    def fingerprint(self, name: str, anew: bool = False) -> bytes:
        """Return what tells without reading that a file is still the same one; empty where nothing does.

        With `anew`, whoever keeps it is asked, whatever a listing told.
        """

    def labelled(self) -> Labelled | None:
        """Return the labels that the source itself tells; None where folders tell them."""
        return None


def clean(name: str) -> str:
    """Return a member's name without a leading ``./``."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_plain(name: str) -> bool:
    """Return whether a member's name stays inside of what holds it, and can be told apart from others."""
    parts = re.split(r"[/\\]", name)
    return not (".." in parts or "." in parts or "" in parts or "\0" in name or _DRIVE.match(name))


def verdict(name: str) -> str | None:
    """Return why a member is not to be used: an empty reason for an image, None for litter to pass over silently."""
    if not is_plain(name):
        return "no plain name inside of the archive"
    parts = name.split("/")
    if any(map(is_hidden, parts)):
        return None
    return why_no_image_name(parts[-1])
