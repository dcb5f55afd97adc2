"""From names to samples: which files of a folder are images, in a fixed order, with labels and splits if known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from .files import Place

SPLITS = ("train", "val", "test", "none")
UNDECIDED = ""  # the content digest will say whether train or val
SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# What torchvision's ImageFolder takes (and no GIF), so that published sample counts hold here too, and what phones and
# browsers write besides. Which format a file has its content says; this decides only what counts as a stranger.
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
                            ".jfif", ".jpe", ".pjpeg", ".pjp", ".mpo", ".avif", ".jp2", ".j2k", ".jpf", ".jpx",
                            ".heic", ".heif", ".hif"))  # fmt: skip
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_MISSING = "HEIC needs pillow-heif: pip install 'image-feature-pipeline[heif]'"
_LITTER = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "@eadir", "lost+found"))
_GIF = "GIF files of a folder are not taken; name one in a CSV to use its first frame"
Identity = tuple[int, int]  # device and inode of a folder


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


def check_classes(classes: Sequence[str], labels: np.ndarray, where: Place, meant: Place | None = None) -> None:
    """Refuse a labelled data set with fewer than two classes, or with a class that has no image.

    Parameters
    ----------
    classes, labels
        As of `Samples`.
    where : Path or Url
        The data set.
    meant : Path or Url, optional
        What to ask about where there is one class.

    Raises
    ------
    DataError
        Naming the classes in question.
    """
    if len(classes) == 1:
        ask = f"Did you mean {str(meant)!r}? " if meant else ""
        raise DataError(
            f"{where} has one class, {classes[0]!r}; telling images apart takes at least two. {ask}"
            "Expected: train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, or a CSV with path and label."
        )
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    empty = [repr(classes[index]) for index in np.flatnonzero(counts == 0).tolist()]
    if empty:
        raise DataError(f"No usable image in {where} for class {first_few(empty)}. Add images or remove the class.")


@dataclass
class Level:
    """What lies directly in one folder.

    Attributes
    ----------
    images : list of str
        Names, sorted.
    folders : list of (str, bool)
        Names, sorted, and whether each is a link.
    skipped : list of (str, str)
        Names of the other files, sorted, each with the reason.
    """

    images: list[str] = field(default_factory=list)
    folders: list[tuple[str, bool]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is the system's litter, to be passed over silently."""
    return name.startswith(".") or name.lower() in _LITTER


def scan(folder: str | Path, bar: Any = None) -> Level:
    """List one folder, not what lies deeper.

    Raises
    ------
    OSError
        It cannot be listed.
    """
    level = Level()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name):
                _sort_in(entry, level)
                if bar is not None:
                    bar.update(1)
    level.images.sort()
    level.folders.sort()
    level.skipped.sort()
    return level


def _sort_in(entry: os.DirEntry[str], level: Level) -> None:
    try:
        if entry.is_dir():
            level.folders.append((entry.name, entry.is_symlink()))
            return
        reason = _why_no_image(entry)
    except OSError as error:  # a link that leads to itself
        reason = f"cannot be followed: {error.strerror}"
    if reason:
        level.skipped.append((entry.name, reason))
    else:
        level.images.append(entry.name)


def why_no_image_name(name: str) -> str:
    """Return why a file of this name is not taken as an image; empty if it is."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  a Path for each of a million names is slow
    if suffix == ".gif":
        return _GIF
    if suffix not in IMAGE_SUFFIXES:
        return f"{suffix!r} is no image's extension" if suffix else "no extension"
    return HEIF_MISSING if suffix in HEIF_SUFFIXES and not _has_heif() else ""


@cache
def _has_heif() -> bool:
    return find_spec("pillow_heif") is not None


def _why_no_image(entry: os.DirEntry[str]) -> str:
    if reason := why_no_image_name(entry.name):
        return reason
    if entry.is_file():
        return ""
    return "a link to nothing" if entry.is_symlink() else "not a regular file"


def walk(root: Path, inside: str = "", bar: Any = None) -> Iterator[tuple[str, str]]:
    """Yield every file below a folder, that folder's own files first, each level sorted.

    Links to files and folders are followed, but none back to a folder that holds the link, and none twice.

    Parameters
    ----------
    root : Path
        Where paths start.
    inside : str
        The folder to list, relative to `root`.
    bar : progress bar, optional
        Told of every file seen.

    Yields
    ------
    path : str
        Relative to `root`, with ``/``.
    reason : str
        Why it is not to be used; empty for an image.
    """
    linked: set[Identity] = set()
    stack = [(inside, _holders(root) | _holders(root / inside))]
    while stack:
        folder, above = stack.pop()
        prefix = f"{folder}/" if folder else ""
        try:
            here = above | {_identity(root / folder)}
            level = scan(root / folder, bar)
        except OSError as error:
            yield folder, f"cannot be listed: {error.strerror}"
            continue
        yield from ((prefix + name, "") for name in level.images)
        yield from ((prefix + name, reason) for name, reason in level.skipped)
        deeper = []
        for name, is_link in level.folders:
            reason = _why_not_followed(root / (prefix + name), here, linked) if is_link else ""
            if reason:
                yield prefix + name, reason
            else:
                deeper.append((prefix + name, here))
        stack += reversed(deeper)


def _why_not_followed(link: Path, here: frozenset[Identity], linked: set[Identity]) -> str:
    try:
        target = _identity(link)
    except OSError as error:
        return f"cannot be followed: {error.strerror}"
    if target in here:
        return "a link back to a folder that holds it"
    if target in linked:
        return "a second link to the same folder"
    linked.add(target)
    return ""


def _holders(folder: Path) -> frozenset[Identity]:
    real = Path(os.path.realpath(folder))
    return frozenset(map(_identity, (real, *real.parents)))


def _identity(folder: Path) -> Identity:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino
