"""What a listing yields before any file has been read: paths, labels, and splits as far as they are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import DataError
from .places import Place

SPLITS = ("train", "val", "test", "none")
UNDECIDED = ""  # the content digest will say whether train or val
SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class NothingFoundError(DataError):
    """There is no image at all."""


@dataclass
class Samples:
    """Images that were listed but not yet read.

    Attributes
    ----------
    name : str
        Of the data set; safe as a folder name.
    root : Path or Url
        Where `paths` start.
    paths : list of str
        As `os.fsdecode` gives them, with ``/``.
    labels : np.ndarray
        Shape (N,), int64: an index into `classes`, or -1.
    splits : np.ndarray
        Shape (N,), one of `SPLITS`, or `UNDECIDED`.
    classes : tuple of str
        Sorted; empty when nothing is labelled.
    skipped : list of (str, str)
        Other files, each with the reason.
    notes : list of str
        Remarks for the user, one line each.
    from_folders : bool
        Whether the classes are folders, so that one without an image is a mistake.
    """

    name: str
    root: Place
    paths: list[str]
    labels: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...] = ()
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    from_folders: bool = False

    @classmethod
    def empty(cls, name: str, root: Place) -> Samples:
        """Return a listing without any image."""
        return cls(name, root, [], np.empty(0, np.int64), np.empty(0, "<U5"))


def safe_name(text: str) -> str:
    """Return `text` as a folder name that suits every file system and is none of our own.

    >>> safe_name("My photos (2024)")
    'My-photos-2024'
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or "data"
    return f"{name}-data" if name.lower() == "downloads" else name


def first_few(items: Iterable[object], most: int = 3) -> str:
    """Return the first few of many things, comma-separated, and how many more there are."""
    items = list(items)
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def check_classes(classes: Sequence[str], labels: np.ndarray, where: Place) -> None:
    """Refuse a labelled data set with fewer than two classes, or with a class that has no image.

    Raises
    ------
    DataError
        Naming the classes in question.
    """
    if len(classes) == 1:
        raise DataError(
            f"{where} has one class, {classes[0]!r}; telling images apart takes at least two. "
            "Expected: train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, or a CSV with path and label."
        )
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    empty = [repr(classes[index]) for index in np.flatnonzero(counts == 0).tolist()]
    if empty:
        raise DataError(f"No usable image in {where} for class {first_few(empty)}. Add images or remove the class.")
