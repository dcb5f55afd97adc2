"""What is odd about labels and splits, a line each: what would otherwise be a wrong result without a word."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .listing import HEIF_MISSING, first_few

_NUMBER = re.compile(r"[0-9]{1,300}(\.[0-9]{1,300})?")
_NO_LABEL = ("nan", "none", "null", "n/a", "#n/a", "na", "<na>")  # as programs write a missing value


class Labelled(Protocol):
    """Labelled images: a `Dataset`, or a cache of its features."""

    @property
    def paths(self) -> Sequence[str]:
        """Names of the images."""

    @property
    def labels(self) -> np.ndarray:
        """Shape (N,): an index into `classes`, or -1."""

    @property
    def splits(self) -> np.ndarray:
        """Shape (N,)."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def digests(self) -> np.ndarray:
        """Shape (N, 16), uint8: of each image's content."""


def missing_decoders(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Say how many files were skipped, with (name, reason) each, that a library which is not installed would read."""
    count = sum(reason == HEIF_MISSING for _, reason in skipped)
    return [f"{count:,} files are left out: {HEIF_MISSING}."] if count else []


def label_remarks(images: Labelled) -> list[str]:
    """Say which labels cannot be right, or cannot be learned.

    Returns
    -------
    list of str
        A line each about images of val and test whose class train lacks, classes that differ by capitals or by form
        alone, one photo under several labels, and no label at all; none where all is well.
    """
    if not len(images.classes):
        return ["No image has a label, so there is nothing to train a head on: class folders or a table would tell."]
    return [*_not_learned(images), *_alike(images.classes), *_absent(images.classes), *_contradictions(images)]


def _not_learned(images: Labelled) -> list[str]:
    learned = np.unique(images.labels[(images.splits == "train") & (images.labels >= 0)])
    remarks = []
    for split in ("val", "test") if len(learned) else ():
        labels = images.labels[(images.splits == split) & (images.labels >= 0)]
        strange = labels[~np.isin(labels, learned)]
        if len(strange):
            names = [repr(images.classes[label]) for label in np.unique(strange).tolist()]
            remarks.append(f"No head can be right about {len(strange):,} of {len(labels):,} {split} images: train has "
                           f"none of class {first_few(names)}.")
    return remarks


def _alike(classes: Sequence[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in classes:
        key = unicodedata.normalize("NFKC", name).casefold().strip()
        groups.setdefault(str(float(key)) if _NUMBER.fullmatch(key) else key, []).append(name)
    alike = [" and ".join(map(repr, names)) for names in groups.values() if len(names) > 1]
    return [f"Names of classes differ by capitals or form alone, or are one number: {first_few(alike)}. If one class "
            "is meant, give it one name."] if alike else []  # fmt: skip


def _absent(classes: Sequence[str]) -> list[str]:
    found = [repr(name) for name in classes if name.casefold() in _NO_LABEL]
    return [f"{' and '.join(found)} is taken for a class. If it stands for no label, leave it empty."] if found else []


def _contradictions(images: Labelled) -> list[str]:
    labelled = np.flatnonzero(images.labels >= 0)
    keys = np.ascontiguousarray(images.digests[labelled]).view(np.dtype((np.void, 16))).ravel()
    _, group = np.unique(keys, return_inverse=True)
    labels = images.labels[labelled]
    order = np.lexsort((labels, group))
    change = (np.diff(group[order]) == 0) & (np.diff(labels[order]) != 0)
    if not change.any():
        return []
    doubtful = np.unique(group[order[1:]][change])
    told = []
    for one in doubtful[:3].tolist():
        rows = labelled[group == one].tolist()
        told.append(" and ".join(f"{images.paths[row]!r} ({images.classes[images.labels[row]]})" for row in rows[:3]))
    more = f", and {len(doubtful) - 3} more" if len(doubtful) > 3 else ""
    return [f"{len(doubtful):,} photos have several labels, of which one at most is right: {', '.join(told)}{more}."]
