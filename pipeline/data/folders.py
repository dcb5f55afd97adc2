"""Data sets that are folders: split into train/val/test, one folder a class, or flat and unlabelled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..progress import Progress, silent
from .listing import IMAGE_SUFFIXES, Level, scan, walk
from .samples import SPLIT_OF, UNDECIDED, Samples, first_few, safe_name

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
    samples = Samples(safe_name(root.name), root, [], np.empty(0, np.int64), np.empty(0, "<U5"))
    with progress(desc="Listing", unit="file") as bar:
        level = _scan(root)
        splits = _split_folders(root, level)
        if splits:
            groups = _from_split_folders(splits, level, samples)
        else:
            groups = [(name, UNDECIDED, name) for name, _ in level.folders]
        _fill(samples, groups, bar)
        _add_top_level(samples, level)
    if not samples.paths:
        raise DataError(_nothing_found(samples))
    return samples


def _scan(folder: Path) -> Level:
    try:
        return scan(folder)
    except OSError as error:
        raise DataError(f"Cannot list the folder {folder}: {error.strerror}.") from error


def _split_folders(root: Path, level: Level) -> dict[str, str]:
    """Return split -> folder name; empty when the folders are classes (one of which may well be called train)."""
    named = [(SPLIT_OF[name.lower()], name) for name, _ in level.folders if name.lower() in SPLIT_OF]
    splits = dict(named)
    if len(splits) < len(named):
        raise DataError(f"Two folders for one split in {root}: {', '.join(sorted(name for _, name in named))}.")
    holds_classes = any(_scan(root / name).folders for name in splits.values())
    return splits if holds_classes or len(named) == len(level.folders) else {}


def _from_split_folders(splits: dict[str, str], level: Level, samples: Samples) -> list[tuple[str, str, str]]:
    """Return (folder, split, class) for each class folder of each split."""
    groups = []
    others = [name for name, _ in level.folders if name not in splits.values()]
    samples.skipped += [(name, f"a folder beside {', '.join(splits.values())}") for name in others]
    for split, folder in splits.items():
        inner = _scan(samples.root / folder)
        groups += [(f"{folder}/{name}", split, name) for name, _ in inner.folders]
        samples.skipped += [(f"{folder}/{name}", _BESIDE) for name in inner.images]
        samples.skipped += [(f"{folder}/{name}", reason) for name, reason in inner.skipped]
    return groups


def _fill(samples: Samples, groups: list[tuple[str, str, str]], bar: Any) -> None:
    """Walk every class folder; a class is its top folder, however deep the image lies."""
    samples.classes = tuple(sorted({name for _, _, name in groups}))
    index = {name: number for number, name in enumerate(samples.classes)}
    labels, splits = [samples.labels], [samples.splits]
    for folder, split, name in groups:
        before = len(samples.paths)
        for path, reason in walk(samples.root, folder, bar):
            if reason:
                samples.skipped.append((path, reason))
            else:
                samples.paths.append(path)
        labels.append(np.full(len(samples.paths) - before, index[name], np.int64))
        splits.append(np.full(len(samples.paths) - before, split, "<U5"))
    samples.labels, samples.splits = np.concatenate(labels), np.concatenate(splits)


def _add_top_level(samples: Samples, level: Level) -> None:
    """Take the images that lie in the folder itself: they are the data set if there is nothing deeper."""
    samples.skipped += level.skipped
    if samples.paths or not level.images:
        samples.skipped += [(name, _BESIDE) for name in level.images]
        return
    samples.paths, samples.classes = level.images, ()
    samples.labels = np.full(len(level.images), -1, np.int64)
    samples.splits = np.full(len(level.images), "none", "<U5")


def _nothing_found(samples: Samples) -> str:
    text = f"No images in {samples.root}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
    if samples.skipped:
        text += f" Passed over: {first_few(f'{path!r} ({reason})' for path, reason in samples.skipped)}."
    return text
