"""What is odd about a data set, found in its cached features, labels and digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import PipelineError
from ..core.progress import Progress, silent
from ..store import FeatureCache
from .label_errors import label_errors, out_of_fold
from .similar import NEAR, Likeness, outlying

EVALUATED = ("val", "test")
IMBALANCE = 3.0  # largest class over smallest from which it is worth a word


@dataclass(frozen=True)
class Group:
    """Images that are the same, or nearly.

    Attributes
    ----------
    rows : tuple of int
        In the cache, ascending.
    exact : bool
        Byte for byte.
    similarity : float
        The least cosine between one of them and the one that it was joined to; 1 for copies.
    splits : tuple of str
    labels : tuple of str
        Class names; more than one means that some label is wrong.
    """

    rows: tuple[int, ...]
    exact: bool
    similarity: float
    splits: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """All findings; rows are positions in the cache.

    Attributes
    ----------
    dataset : str
    images, features : int
    threshold : float
        Cosine of centred features from which two images count as nearly the same.
    groups : list of Group
    leaked : (L,) int array
        Rows of val that are in train too, and of test that are in train or val.
    label_errors : list of (row, likelier class, probability of its own label, of the likelier)
        The worst first. None where labels cannot be checked; see `notes`.
    outliers : list of (row, distance to its neighbours, of a usual image)
        The farthest first.
    class_counts : dict of str to dict of str to int
        Images of each class in each split.
    imbalance : float
        The largest class of train over the smallest.
    dead, constant : int
        Features that are 0 everywhere; that have one value everywhere, those included.
    skipped : list of (path, reason)
    notes : list of str
    """

    dataset: str
    images: int
    features: int
    threshold: float
    paths: Sequence[str]
    groups: list[Group]
    leaked: np.ndarray
    label_errors: list[tuple[int, str, float, float]]
    outliers: list[tuple[int, float, float]]
    class_counts: dict[str, dict[str, int]]
    imbalance: float
    dead: int
    constant: int
    skipped: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, images by their paths."""
        paths = self.paths
        return {
            "dataset": self.dataset, "images": self.images, "features": self.features, "threshold": self.threshold,
            "duplicates": [
                {"paths": [paths[row] for row in group.rows], "exact": group.exact, "similarity": group.similarity,
                 "splits": list(group.splits), "labels": list(group.labels)} for group in self.groups
            ],
            "leaks": [paths[row] for row in self.leaked.tolist()],
            "label_errors": [
                {"path": paths[row], "likelier": name, "own_probability": own, "likelier_probability": other}
                for row, name, own, other in self.label_errors
            ],
            "outliers": [{"path": paths[row], "distance": far, "usual": usual} for row, far, usual in self.outliers],
            "class_counts": self.class_counts, "imbalance": self.imbalance, "dead_features": self.dead,
            "constant_features": self.constant, "skipped": [list(one) for one in self.skipped], "notes": self.notes,
        }  # fmt: skip


def audit_cache(
    cache: FeatureCache, *, threshold: float = NEAR, seed: int = 0, progress: Progress = silent
) -> Audit:  # fmt: skip
    """Look for what makes a score untrustworthy, on cached features alone.

    Parameters
    ----------
    cache : FeatureCache
    threshold : float
        Cosine from which two images count as nearly the same.
    seed : int
        Of the folds behind the out-of-fold probabilities.
    progress : Progress

    Raises
    ------
    PipelineError
        If the threshold is no cosine.
    """
    if not 0 < threshold <= 1:
        raise PipelineError(f"The similarity of near-duplicates is a cosine above 0 and up to 1, not {threshold}.")
    rows = cache.read_rows(view=0)
    notes: list[str] = []
    likeness = Likeness(rows, cache.digests, threshold, progress=progress)
    groups, distances = _groups(cache, likeness), likeness.distances()
    far, usual = outlying(distances)
    return Audit(
        dataset=cache.meta["dataset"], images=len(cache), features=rows.shape[1], threshold=threshold,
        paths=cache.paths, groups=groups, leaked=_leaked(groups, cache.splits),
        label_errors=_label_errors(cache, rows, groups, seed, notes, progress),
        outliers=[(int(row), float(distances[row]), usual) for row in far],
        class_counts=(counts := _class_counts(cache)), imbalance=_imbalance(counts),
        dead=int((rows == 0).all(axis=0).sum()), constant=int((rows == rows[:1]).all(axis=0).sum()),
        skipped=list(cache.skipped), notes=notes,
    )  # fmt: skip


def _groups(cache: FeatureCache, likeness: Likeness) -> list[Group]:
    found = []
    for members, exact, similarity in likeness.groups():
        names = {cache.classes[label] for label in cache.labels[members].tolist() if label >= 0}
        splits = tuple(sorted(set(cache.splits[members].tolist())))
        found.append(Group(tuple(members.tolist()), exact, similarity, splits, tuple(sorted(names))))
    return sorted(found, key=lambda group: (len(group.splits) < 2, not group.exact, -group.similarity, group.rows))


def _leaked(groups: list[Group], splits: np.ndarray) -> np.ndarray:
    """Return the rows of evaluated splits that an earlier split holds too."""
    leaked = []
    for group in groups:
        for row in group.rows:
            earlier = {"val": ("train",), "test": ("train", "val")}.get(splits[row], ())
            if any(name in group.splits for name in earlier):
                leaked.append(row)
    return np.array(sorted(leaked), int)


def _label_errors(
    cache: FeatureCache, rows: np.ndarray, groups: list[Group], seed: int, notes: list[str], progress: Progress
) -> list[tuple[int, str, float, float]]:
    labelled = np.flatnonzero(cache.labels >= 0)
    together = np.arange(len(rows))
    for group in groups:
        together[list(group.rows)] = group.rows[0]
    found = out_of_fold(rows[labelled], cache.labels[labelled], together[labelled], len(cache.classes), seed,
                        progress)
    if found is None:
        notes.append("Labels are not checked: that takes two classes of two images each, at least.")
        return []
    labels = cache.labels[labelled]
    errors = []
    for index in label_errors(labels, found):
        likelier, own = int(found[index].argmax()), float(found[index, labels[index]])
        errors.append((int(labelled[index]), cache.classes[likelier], own, float(found[index, likelier])))
    return errors


def _class_counts(cache: FeatureCache) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split in dict.fromkeys(("train", *EVALUATED, *cache.splits.tolist())):
        labels = cache.labels[(cache.splits == split) & (cache.labels >= 0)]
        if len(labels):
            sizes = np.bincount(labels, minlength=len(cache.classes)).tolist()
            counts[split] = dict(zip(cache.classes, sizes, strict=True))
    return counts


def _imbalance(counts: dict[str, dict[str, int]]) -> float:
    sizes = [size for size in counts.get("train", {}).values() if size]
    return max(sizes) / min(sizes) if sizes else 1.0
