"""Data sets that are folders, on disk or inside an archive: split into train/val/test, one folder a class, or flat."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .listing import (
    IMAGE_SUFFIXES,
    SPLIT_OF,
    UNDECIDED,
    Level,
    NothingFoundError,
    Samples,
    first_few,
    safe_name,
    scan,
    walk,
)

_BESIDE = "beside the class folders, so it has no class"


class NamesInside:
    """Files sorted into the folders that their names tell.

    Parameters
    ----------
    entries : iterable of (str, str)
        Name and why it is not to be used; an empty reason for an image.
    strip : bool
        Look for the layout inside of the one folder that holds everything, if that is so and it is no split.

    Attributes
    ----------
    prefix : str
        The folder that paths given to `scan` and `walk` start in, with a slash; paths that come back are whole.
    loose : list of (str, str)
        What is not to be used and lies in no folder with images below that one.
    """

    def __init__(self, entries: Iterable[tuple[str, str]], strip: bool = False):
        self.prefix, self.loose = "", list[tuple[str, str]]()
        self._images: dict[str, list[str]] = {"": []}
        self._skipped: dict[str, list[tuple[str, str]]] = {}
        others = []
        self._folders: dict[str, set[str]] = {"": set()}
        for name, reason in entries:
            folder = name.rpartition("/")[0]
            if reason:
                others.append((name, reason))
            else:
                if folder not in self._images:
                    self._make(folder)
                self._images[folder].append(name)
        while strip and not self._images[top := self.prefix.rstrip("/")] and len(self._folders[top]) == 1:
            only = next(iter(self._folders[top]))
            if only.lower() in SPLIT_OF or not self.prefix.count("/") < 8:
                break
            self.prefix += f"{only}/"
        # a name that leads elsewhere makes no folder, and a file that is no image makes no class
        for name, reason in others:
            folder = name.rpartition("/")[0]
            inside = folder in self._images and f"{folder}/".startswith(self.prefix)
            (self._skipped.setdefault(folder, []) if inside else self.loose).append((name, reason))

    def _make(self, folder: str) -> None:
        while folder and folder not in self._images:
            self._images[folder], self._folders[folder] = [], self._folders.get(folder, set())
            above, _, name = folder.rpartition("/")
            self._folders.setdefault(above, set()).add(name)
            folder = above

    def scan(self, inside: str = "") -> Level:
        """List one folder, as `listing.scan`; names are relative to it."""
        folder = (self.prefix + inside).rstrip("/")
        start = len(folder) + 1 if folder else 0
        images = sorted(name[start:] for name in self._images.get(folder, ()))
        skipped = sorted((name[start:], reason) for name, reason in self._skipped.get(folder, ()))
        return Level(images, [(name, False) for name in sorted(self._folders.get(folder, ()))], skipped)

    def walk(self, inside: str = "", bar: Any = None) -> Iterator[tuple[str, str]]:
        """Yield every file below a folder, that folder's own files first, each level sorted."""
        stack = [(self.prefix + inside).rstrip("/")]
        while stack:
            folder = stack.pop()
            yield from ((name, "") for name in sorted(self._images.get(folder, ())))
            yield from sorted(self._skipped.get(folder, ()))
            below = f"{folder}/" if folder else ""
            stack += [below + name for name in sorted(self._folders.get(folder, ()), reverse=True)]
            if bar is not None:
                bar.update(len(self._images.get(folder, ())))


def list_folder(root: Path, progress: Progress = silent) -> Samples:
    """List a folder of images in whichever of the three layouts it has.

    Parameters
    ----------
    root : Path
        ``train/CLASS/…`` with ``val/`` and ``test/`` (or ``valid``, ``validation``…); or ``CLASS/…``; or images only.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        It is missing, unreadable, or holds no image in any of these layouts.
    """
    root = Path(os.path.abspath(root.expanduser()))  # noqa: PTH100  the name of a link is the user's own choice
    samples = Samples.empty(safe_name(root.name), root)
    list_tree(samples, FolderTree(root), progress)
    return samples


def layout_below(root: Path) -> Path | None:
    """Return the folder with classes or splits that lies alone in a folder, or alone in one that does; else None."""
    folder, level = root, scan(root)
    while len(level.folders) == 1 and not level.images and len(folder.parts) < len(root.parts) + 8:
        folder = folder / level.folders[0][0]
        level = scan(folder)
    return folder if folder != root and level.folders and not level.images else None


class FolderNames(Protocol):
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


def list_tree(samples: Samples, tree: FolderNames, progress: Progress = silent) -> None:
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


def _split_folders(samples: Samples, tree: FolderNames, level: Level) -> dict[str, str]:
    """Return split -> folder name; empty when the folders are classes (one of which may well be called train)."""
    named = [(SPLIT_OF[name.lower()], name) for name, _ in level.folders if name.lower() in SPLIT_OF]
    splits = dict(named)
    if len(splits) < len(named):
        names = ", ".join(sorted(name for _, name in named))
        raise DataError(f"Two folders for one split in {samples.root}: {names}.")
    holds_classes = any(tree.scan(name).folders for name in splits.values())
    return splits if holds_classes or len(named) == len(level.folders) else {}


def _from_split_folders(
    splits: dict[str, str], tree: FolderNames, level: Level, samples: Samples
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


def _fill(samples: Samples, tree: FolderNames, groups: list[tuple[str, str, str]], bar: Any) -> None:
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
    if samples.skipped and all(reason == _BESIDE for _, reason in samples.skipped):
        return (f"No image of {samples.root} lies in a class folder: {first_few(name for name, _ in samples.skipped)}. "
                "Expected: train/CLASS/*.jpg and val/CLASS/*.jpg; or, where names tell the classes, a CSV with path "
                "and label.")
    text = f"No images in {samples.root}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
    if samples.skipped:
        text += f" Passed over: {first_few(f'{path!r} ({reason})' for path, reason in samples.skipped)}."
    return text
