"""Put a finished cache in its place: as one file, or in parts where it has more rows than a part may have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CacheError
from ..core.progress import Progress
from .disk import Disk
from .feature_cache import FeatureCache, describe
from .hdf5 import Column, parts_listed, write_hdf5
from .layout import PLACES
from .listing import ImageListing
from .paths import PART_ROWS, CachePlaces
from .row_index import FAILED, RowIndex, RowKind, parts_among
from .spec import FORMAT_VERSION, Spec


def sweep(places: CachePlaces, disk: Disk, needed: Collection[str] = ()) -> None:
    """Remove the parts that no cache file lists, superseded or a killed run's, but those needed still.

    The caller holds the lock.
    """
    if not places.parts.exists():
        return
    named = set(needed)
    for path in (places.path, *places.others()):
        try:
            named |= {part["name"] for part in parts_listed(path).get("parts", [])} if path.exists() else set()
        except CacheError:
            return  # nobody knows what it lists
    places.remove_parts(disk, named)


_PARTS_AIMED_AT = 256  # larger parts rather than more of them


@dataclass(frozen=True)
class Publisher:
    """Writes complete caches. The caller holds the lock.

    Attributes
    ----------
    places : CachePlaces
    spec : Spec
    index : RowIndex
        Where every row is.
    disk : Disk
    progress : Progress
    part_rows : int
        Rows of a part; a cache of no more than these is one file.
    """

    places: CachePlaces
    spec: Spec
    index: RowIndex
    disk: Disk
    progress: Progress
    part_rows: int

    def size(self, images: int) -> int:
        """Return the rows of a part of a cache of so many images."""
        return max(self.part_rows, -(-images // _PARTS_AIMED_AT))

    def rows_to_write(self) -> int:
        """Return how many rows a complete cache takes beside what stays as it is."""
        images = np.flatnonzero(self.index.source != FAILED)
        if len(images) <= self.size(len(images)):
            return len(self.index.image)
        return int((~np.isin(self.index.source[images], list(self._staying(images)))).sum())

    def publish(self, listing: ImageListing, meta: Mapping[str, Any]) -> None:
        """Write all, verify it, and put it in place. Parts that it no longer needs stay; see `sweep`."""
        listed = self.index.image[self.index.state >= 0]
        images = np.unique(listed)
        needed = {part.path.name for part in parts_among(self.index.sources, self.places).values()}
        sweep(self.places, self.disk, needed)  # what a killed run left takes room
        if len(images) <= self.size(len(images)):
            self._write(self.places.path, listed, listing, {**meta, "failed": self.index.remembered()})
        else:
            self._write_parts(images, listed, listing, meta)

    def _staying(self, images: np.ndarray) -> dict[int, FeatureCache]:
        """Return the sources that are parts to be kept: not too large, and at least half of a part is still wanted."""
        size, source = self.size(len(images)), self.index.source[images]
        return {
            number: part for number, part in parts_among(self.index.sources, self.places).items()
            if len(part) <= size <= 2 * np.count_nonzero(source == number)
        }  # fmt: skip

    def _write_parts(
        self, images: np.ndarray, listed: np.ndarray, listing: ImageListing, meta: Mapping[str, Any]
    ) -> None:
        parts, starts, start = list[dict[str, Any]](), np.full(len(self.index.keys), -1, np.int64), 0
        for number, part in self._staying(images).items():
            if not part.problems():
                mine = images[self.index.source[images] == number]
                starts[mine] = start + self.index.row[mine]
                parts, start = [*parts, describe(part)], start + len(part)
        new = images[starts[images] < 0]
        new = new[np.argsort(self.index.first[new], kind="stable")]
        self.disk.make_folder(self.places.parts)
        for mine in np.array_split(new, -(-len(new) // self.size(len(images)))) if len(new) else ():
            path = self.places.new_part()
            own = ImageListing.of_part(self.index.digests_of(mine))
            self._write(path, mine, own, {**meta, "failed": {}, "part_of": self.places.path.name})
            with FeatureCache.open(path) as part:
                parts.append(describe(part))
            starts[mine] = start + np.arange(len(mine))
            start += len(mine)
        places = Column((len(listed),), np.dtype("<i8"), lambda first, stop: starts[listed[first:stop]])
        meta = {**meta, "failed": self.index.remembered(), "parts": parts, "part_rows": self.part_rows}
        self._publish(self.places.path, {PLACES: places}, listing, meta, lambda _: None)

    def _write(self, path: Path, images: np.ndarray, listing: ImageListing, meta: Mapping[str, Any]) -> None:
        """Write an ordinary cache file with the rows of these distinct images."""
        kind = self.index.kind or RowKind((0,), np.dtype("<f4"))
        features = Column((len(images), *kind.shape), kind.dtype,
                          lambda start, stop: self.index.read(images[start:stop]))  # fmt: skip
        with self.progress(total=2 * len(images), desc=f"Writing {path.name}", unit="rows") as bar:
            self._publish(path, {"features": features}, listing, meta, bar.update)

    def _publish(
        self, path: Path, rows: dict[str, Column], listing: ImageListing, meta: Mapping[str, Any], done: Callable
    ) -> None:
        meta = {
            **meta,
            "format": FORMAT_VERSION,
            "spec": self.spec.fields,
            "spec_sha256": self.spec.sha256,
            "classes": list(listing.classes),
            "counts": listing.counts(),
            "root": listing.root,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.disk.publish(
            path,
            fill=lambda file: write_hdf5(file, {**rows, **listing.columns}, meta, done),
            check=lambda written: _prove(written, self.spec, done),
        )


def part_rows_of(path: Path) -> int:
    """Return the rows of a part that the cache `path` was written with last, or the usual ones."""
    try:
        rows = parts_listed(path).get("part_rows")
    except CacheError:
        rows = None
    return rows if type(rows) is int and rows > 0 else PART_ROWS


def _prove(path: Path, spec: Spec, done) -> None:
    with FeatureCache.open(path, spec=spec) as cache:
        problems = FeatureCache.problems(cache, done)  # of the file just written; its parts were proven before
    if problems:
        raise CacheError(f"{path} was not stored as written: {problems[0]}. The disk may be failing.")
