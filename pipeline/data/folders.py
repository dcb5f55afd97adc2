"""Data sets that are folders: split into train/val/test, one folder a class, or flat and unlabelled."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from ..progress import Progress, silent
from .listing import IMAGE_SUFFIXES, Level, scan, walk
from .samples import SPLIT_OF, UNDECIDED, NothingFoundError, Samples, first_few, safe_name

_BESIDE = "beside the class folders, so it has no class"


def list_folder(root: Path, progress: Progress = silent) -> Samples:
    """List a folder of images in whichever of the three layouts it has.

    Parameters
    ----------
    root : Path
        ``train/CLASS/…`` with ``val/`` and ``test/`` (or ``valid``, ``validation``…); or ``CLASS/…``; or images only.
    progress : callable
        See `pipeline.progress`.

    Raises
    ------
    DataError
        It is missing, unreadable, or holds no image in any of these layouts.
    """
    root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100  the name of a link is the user's own choice
    samples = Samples.empty(safe_name(root.name), root)
    list_tree(samples, FolderTree(root), progress)
    return samples


class Tree(Protocol):
    """Folders to look for a layout in; `prefix` is what paths from it begin with, `loose` what lies in none of them."""

    prefix: str
    loose: list[tuple[str, str]]

    def scan(self, inside: str = "") -> Level:
        """List one folder."""

    def walk(self, inside: str = "", bar: Any = None) -> Iterator[tuple[str, str]]:
        """Yield what lies below a folder, by whole paths."""


class FolderTree:
    """The folders of a file system."""

    def __init__(self, root: Path):
        self.root = root
        self.prefix, self.loose = "", list[tuple[str, str]]()

    def scan(self, inside: str = "") -> Level:
        """List one folder, or say why it cannot be."""
        try:
            return scan(self.root / inside)
        except OSError as error:
            raise DataError(f"Cannot list the folder {self.root / inside}: {error.strerror}.") from error

    def walk(self, inside: str = "", bar: Any = None) -> Iterator[tuple[str, str]]:
        """See `listing.walk`."""
        return walk(self.root, inside, bar)


def list_tree(samples: Samples, tree: Tree, progress: Progress = silent) -> None:
    """Fill an empty listing from folders in whichever of the three layouts they have.

    Raises
    ------
    NothingFoundError
        They hold no image.
    """
    with progress(desc="Listing", unit="file") as bar:
        level = tree.scan()
        splits = _split_folders(samples, tree, level)
        if splits:
            groups = _from_split_folders(splits, tree, level, samples)
        else:
            groups = [(name, UNDECIDED, name) for name, _ in level.folders]
        _fill(samples, tree, groups, bar)
        _add_top_level(samples, tree.prefix, level)
        samples.skipped += tree.loose
    if not samples.paths:
        raise NothingFoundError(_nothing_found(samples))


def _split_folders(samples: Samples, tree: Tree, level: Level) -> dict[str, str]:
    """Return split -> folder name; empty when the folders are classes (one of which may well be called train)."""
    named = [(SPLIT_OF[name.lower()], name) for name, _ in level.folders if name.lower() in SPLIT_OF]
    splits = dict(named)
    if len(splits) < len(named):
        names = ", ".join(sorted(name for _, name in named))
        raise DataError(f"Two folders for one split in {samples.root}: {names}.")
    holds_classes = any(tree.scan(name).folders for name in splits.values())
    return splits if holds_classes or len(named) == len(level.folders) else {}


def _from_split_folders(
    splits: dict[str, str], tree: Tree, level: Level, samples: Samples
) -> list[tuple[str, str, str]]:  # fmt: skip
    """Return (folder, split, class) for each class folder of each split."""
    groups = []
    others = [name for name, _ in level.folders if name not in splits.values()]
    samples.skipped += [(tree.prefix + name, f"a folder beside {', '.join(splits.values())}") for name in others]
    for split, folder in splits.items():
        inner, start = tree.scan(folder), f"{tree.prefix}{folder}/"
        groups += [(f"{folder}/{name}", split, name) for name, _ in inner.folders]
        samples.skipped += [(start + name, _BESIDE) for name in inner.images]
        samples.skipped += [(start + name, reason) for name, reason in inner.skipped]
    return groups


def _fill(samples: Samples, tree: Tree, groups: list[tuple[str, str, str]], bar: Any) -> None:
    """Walk every class folder; a class is its top folder, however deep the image lies."""
    samples.from_folders = True
    samples.classes = tuple(sorted({name for _, _, name in groups}))
    index = {name: number for number, name in enumerate(samples.classes)}
    labels, splits = [samples.labels], [samples.splits]
    for folder, split, name in groups:
        before = len(samples.paths)
        for path, reason in tree.walk(folder, bar):
            if reason:
                samples.skipped.append((path, reason))
            else:
                samples.paths.append(path)
        labels.append(np.full(len(samples.paths) - before, index[name], np.int64))
        splits.append(np.full(len(samples.paths) - before, split, "<U5"))
    samples.labels, samples.splits = np.concatenate(labels), np.concatenate(splits)


def _add_top_level(samples: Samples, prefix: str, level: Level) -> None:
    """Take the images that lie in the folder itself: they are the data set if there is nothing deeper."""
    samples.skipped += [(prefix + name, reason) for name, reason in level.skipped]
    images = [prefix + name for name in level.images]
    if samples.paths or not images:
        samples.skipped += [(name, _BESIDE) for name in images]
        return
    samples.paths, samples.classes = images, ()
    samples.labels = np.full(len(images), -1, np.int64)
    samples.splits = np.full(len(images), "none", "<U5")


def _nothing_found(samples: Samples) -> str:
    text = f"No images in {samples.root}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
    if samples.skipped:
        text += f" Passed over: {first_few(f'{path!r} ({reason})' for path, reason in samples.skipped)}."
    return text
