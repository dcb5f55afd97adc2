"""Which images train, which choose, which are kept for the end, where nothing but their content can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .digests import fraction
from .files import Limits
from .listing import UNDECIDED, Samples, first_few
from .memo import Memo
from .perceptual import groups_of, hash_images

VAL_FRACTION = 0.2
_ORDER = ("val", "test")
_TABLE = "CREATE TABLE IF NOT EXISTS splits_v1 (rule TEXT, digest BLOB, split TEXT, PRIMARY KEY (rule, digest)) " \
         "WITHOUT ROWID"  # fmt: skip


@dataclass(frozen=True)
class SplitRule:
    """How images without a given split are divided.

    Parameters
    ----------
    val_fraction : float, optional
        Share that becomes val; by default 0.2 of data without any split. Of data with train and test alone val is taken
        from train, but only if it is asked for.
    test_fraction : float, optional
        Share that becomes test; none by default. Taken from train where there is a split but no test.
    group_duplicates : bool
        Keep images that look the same on one side; see `pipeline.data.perceptual`.

    Raises
    ------
    DataError
        If these are no shares.
    """

    val_fraction: float | None = None
    test_fraction: float | None = None
    group_duplicates: bool = False

    def __post_init__(self) -> None:
        for name, share in (("val", self.val_fraction), ("test", self.test_fraction)):
            if share is not None and not 0 <= share < 1:
                raise DataError(f"The share of {name} must be at least 0 and below 1, not {share}.")
        if (total := (self.val_fraction or 0) + (self.test_fraction or 0)) >= 1:
            raise DataError(f"The shares of val and test are {total:g} together, and leave nothing to train on.")

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> SplitRule:
        """Return the rule that a cache was made by, from its `meta`'s ``origin``."""
        return cls(**{name: told[name] for name in cls.__dataclass_fields__ if name in told})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without what is as usual but for `val_fraction`."""
        return {name: value for name, value in asdict(self).items() if value or name == "val_fraction"}


class SplitMemory(Memo):
    """Which split each image was given, so that images that come later move none."""

    tables = (_TABLE,)

    def known(self, rule: str) -> dict[bytes, str]:
        """Return the splits given by a rule, by digest."""

        def select() -> dict[bytes, str]:
            query = "SELECT digest, split FROM splits_v1 WHERE rule = ? AND split IN ('train', 'val', 'test')"
            return dict(self.connection.execute(query, (rule,))) if self.connection else {}

        return self.guarded(select, {})

    def add(self, rule: str, splits: Mapping[bytes, str]) -> None:
        """Remember more of them; what is known already stays."""

        def insert() -> None:
            if self.connection:
                with self.connection:
                    self.connection.executemany("INSERT OR IGNORE INTO splits_v1 VALUES (?, ?, ?)",
                                                [(rule, *each) for each in splits.items()])

        self.guarded(insert, None)


def decide_splits(
    samples: Samples, digests: np.ndarray, rule: SplitRule, cache_dir: Path, limits: Limits,
    read: Callable[[int], bytes], progress: Progress = silent,
) -> list[str]:  # fmt: skip
    """Give every image that has no split one, and return remarks for the user.

    Of each class the shares become val and test, at least one image of each where the class has so many; which ones
    their content says. So copies stay together, and names, order and other classes play no part. What was decided once
    is remembered in `cache_dir`, and further images move none: they fill up the shares.

    Parameters
    ----------
    samples : Samples
        Its `splits` are changed.
    digests : (N, 16) uint8 array
    rule : SplitRule
    cache_dir : Path
    limits : Limits
    read : callable
        From an image's position to its file's content; called where images are grouped by their looks.
    """
    splits = samples.splits
    open_ = splits == UNDECIDED
    shares = {"val": rule.val_fraction or 0.0, "test": rule.test_fraction or 0.0}
    if open_.any():
        shares["val"] = VAL_FRACTION if rule.val_fraction is None else rule.val_fraction
    elif "val" in splits:
        shares["val"] = 0.0
    for name in _ORDER:
        if getattr(rule, f"{name}_fraction") is not None and name not in splits:
            open_ |= splits == "train"
    if not open_.any():
        return _lacking_val(samples)
    if not any(shares.values()):
        splits[open_] = "train"
        return _told(samples, shares)
    rows = np.flatnonzero(open_)
    groups = np.unique(np.ascontiguousarray(digests).view("V16").ravel(), return_inverse=True)[1].reshape(-1)
    given: dict[int, str] = {}
    remarks = []
    if rule.group_duplicates:
        groups, joined = _joined(groups, read, limits, progress)
        given = {int(group): str(split) for group, split in zip(groups[~open_], splits[~open_], strict=True)
                 if split != "none"}  # fmt: skip
        remarks = [f"{joined:,} images look like another one, in whose split they are."]
    named = ", ".join(f"{name} {share:g}" for name, share in shares.items()) + ", grouped" * rule.group_duplicates
    keys = [digest.tobytes() for digest in digests[rows]]
    with SplitMemory(cache_dir / "splits.sqlite") as memory:
        earlier = memory.known(named)
        before = np.array([earlier.get(key, "") for key in keys], "<U5")
        splits[rows] = _assigned(groups[rows], samples.labels[rows], fraction(digests[rows]), before, given, shares)
        memory.add(named, {key: str(split) for key, split, known in zip(keys, splits[rows], before, strict=True)
                           if not known})  # fmt: skip
    return [*_told(samples, shares), *remarks]


def _joined(
    groups: np.ndarray, read: Callable[[int], bytes], limits: Limits, progress: Progress
) -> tuple[np.ndarray, int]:
    """Return groups of which those are one that look alike, and how many images are in one with another."""
    _, first = np.unique(groups, return_index=True)
    hashes, known = hash_images(len(first), lambda index: read(int(first[index])), limits, progress)
    numbers = np.arange(len(first))
    numbers[known] = len(first) + groups_of(hashes[known])
    joined = numbers[groups]
    _, sizes = np.unique(joined, return_counts=True)
    _, copies = np.unique(groups, return_counts=True)
    return joined, int(sizes[sizes > 1].sum() - copies[copies > 1].sum())


def _assigned(
    groups: np.ndarray, labels: np.ndarray, order: np.ndarray, before: np.ndarray, given: Mapping[int, str],
    shares: Mapping[str, float],
) -> np.ndarray:  # fmt: skip
    """Return the split of each image, shape (n,).

    Parameters
    ----------
    groups : (n,) int array
        Images of one number stay together.
    labels : (n,) int array
    order : (n,) array
        By which images are taken; the least come first.
    before : (n,) array of str
        What was decided earlier; empty where nothing was.
    given : mapping from group to split
        Where other images of a group are.
    shares : mapping from split to share
        In the order in which they are filled.
    """
    by_order = np.argsort(order, kind="stable")
    groups, labels, before = groups[by_order], labels[by_order], before[by_order]
    numbers, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    settled = np.array([given.get(int(number), "") for number in numbers], "<U5")
    decided = np.flatnonzero(before != "")
    there, at = np.unique(unit[decided], return_index=True)
    settled[there] = np.where(settled[there] == "", before[decided[at]], settled[there])
    found = np.where(before == "", settled[unit], before)
    sizes, of_class = np.bincount(unit), labels[first]
    fresh = np.lexsort((first, of_class))
    fresh = fresh[settled[fresh] == ""]
    counted = {name: np.bincount(labels[found == name] + 1, minlength=labels.max() + 2) for name in ("train", *shares)}
    totals = np.bincount(labels + 1)
    for units in np.split(fresh, np.flatnonzero(np.diff(of_class[fresh])) + 1) if len(fresh) else ():
        label = int(of_class[units[0]]) + 1
        left, trained = len(units), bool(counted["train"][label])
        for split, share in shares.items():
            lacking = max(round(share * int(totals[label])), int(share > 0)) - int(counted[split][label])
            for number in units[settled[units] == ""].tolist():
                # one at least of each class is for training
                if lacking <= 0 or (left == 1 and not trained):
                    break
                if sizes[number] <= 2 * lacking:
                    settled[number] = split
                    lacking, left = lacking - int(sizes[number]), left - 1
    settled[settled == ""] = "train"
    found = np.where(before == "", settled[unit], before)
    back = np.empty_like(found)
    back[by_order] = found
    return back


def _lacking_val(samples: Samples) -> list[str]:
    train, val = "train" in samples.splits, "val" in samples.splits
    lacks = samples.classes and train and not val
    return ["There is no val split; --val-fraction takes one from train."] if lacks else []


def _told(samples: Samples, shares: Mapping[str, float]) -> list[str]:
    """Say how the splits came about, and which classes lack an image in one."""
    asked = {name: share for name, share in shares.items() if share or name == "val"}
    counts = ", ".join(f"{(samples.splits == name).sum()} {name}" for name in ("train", *asked))
    remarks = [f"Split by content within each class: {counts} images, for a share of "
               f"{', '.join(f'{share:g}' for share in asked.values())}."]  # fmt: skip
    for name, share in asked.items():
        without = set(range(len(samples.classes))) - set(samples.labels[samples.splits == name].tolist())
        if share and without:
            names = first_few(repr(samples.classes[index]) for index in sorted(without))
            remarks.append(f"No {name} image of class {names}: too few.")
    return remarks
