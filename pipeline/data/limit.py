"""Only the first images of a data set: to try something out before it takes hours."""

from __future__ import annotations

import re

import numpy as np

from ..errors import DataError
from .samples import Samples


def without_limit(data: str) -> tuple[str, int | None]:
    """Split ``DATA[:N]`` into what names the data set and N.

    >>> without_limit("photos[:100]")
    ('photos', 100)
    """
    found = re.fullmatch(r"(.+)\[:(-?\d+)\]", data)
    return (found[1], int(found[2])) if found else (data, None)


def keep_first(samples: Samples, count: int) -> None:
    """Keep the first `count` images in listing order, taking from every class of every split in proportion.

    Of a folder without classes that is the first ones. The data set gets a name of its own, and so its own caches:
    those of the whole set stay, and rows are copied from one to the other.

    Raises
    ------
    DataError
        If there are more classes and splits than images may be taken.
    """
    groups = np.unique(np.char.add(samples.splits, samples.labels.astype("<U20")), return_inverse=True)[1]
    least = int(groups.max(initial=0)) + 1
    if count < least:
        raise DataError(f"A limit of {count} images is too low for {samples.name!r}: with a class and split each it "
                        f"takes {least} at the least.")
    if count >= len(samples.paths):
        return
    share = np.empty(len(groups))
    for group in range(least):
        members = np.flatnonzero(groups == group)
        share[members] = np.arange(len(members)) / len(members)
    kept = np.sort(np.argsort(share, kind="stable")[:count])
    samples.notes.append(f"Only {count:,} of {len(samples.paths):,} images, by the limit.")
    samples.paths = [samples.paths[index] for index in kept.tolist()]
    samples.labels, samples.splits = samples.labels[kept], samples.splits[kept]
    samples.name = f"{samples.name}-first-{count}"
