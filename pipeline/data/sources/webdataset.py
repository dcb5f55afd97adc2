"""Labels beside images in a tar archive: ``key.jpg`` with ``key.cls``, ``key.json`` or ``key.txt``.

The convention is WebDataset's (https://github.com/webdataset/webdataset): members of one key stand together, and a key
is a member's path up to the first dot of its last part. Nothing but these three kinds is ever opened.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import numpy as np

from .base import Labelled

LABEL_SUFFIXES = (".cls", ".json", ".txt")  # the first that tells counts
LABEL_BYTES = 65536
_FIELDS = ("label", "cls", "class", "class_name", "label_name")
_LONGEST = 100  # characters; what is longer is a caption, no label


class Groups:
    """Gathers images and labels of one key after the other.

    Attributes
    ----------
    found : dict of str to str
        Label by image.
    unused : list of (str, str)
        Label files of no image, each with the reason.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.unused: list[tuple[str, str]] = []
        self._key = ""
        self._images: list[str] = []
        self._labels: dict[str, tuple[str, str, str]] = {}

    def image(self, name: str) -> None:
        """Take note of an image."""
        self._turn_to(name)
        self._images.append(name)

    def label(self, name: str, content: bytes, reason: str) -> None:
        """Take note of what may be a label."""
        self._turn_to(name)
        suffix = "." + name.rsplit(".", 1)[-1].lower()
        self._labels[suffix] = (name, _text(suffix, content), reason)

    def end(self) -> None:
        """Give the images of the last key their label."""
        told = next((self._labels[suffix][1] for suffix in LABEL_SUFFIXES if self._labels.get(suffix, ("", ""))[1]), "")
        if told and self._images:
            self.found |= dict.fromkeys(self._images, sys.intern(told))
        else:
            self.unused += [(name, reason) for name, _, reason in self._labels.values()]
        self._images, self._labels = [], {}

    def _turn_to(self, name: str) -> None:
        folder, slash, base = name.rpartition("/")
        key = folder + slash + base.partition(".")[0]
        if key != self._key:
            self.end()
            self._key = key

    def labelled(self, names: Mapping[str, object]) -> Labelled:
        """Return the labels of all images of an archive."""
        classes = tuple(sorted(set(self.found.values())))
        index = {label: number for number, label in enumerate(classes)}
        labels = np.array([index.get(self.found.get(name, ""), -1) for name in names], np.int64)
        return Labelled(list(names), labels, classes)


def _text(suffix: str, content: bytes) -> str:
    """Return the label that a file tells; empty if it tells none."""
    try:
        text = content.decode().strip()
        if suffix == ".json":
            told = json.loads(text)
            told = next((told[field] for field in _FIELDS if field in told), "") if isinstance(told, dict) else told
            text = str(told) if isinstance(told, (str, int)) else ""
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= _LONGEST and text.isprintable() else ""
