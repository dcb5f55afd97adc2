"""Several caches of the same images side by side: one row an image, the columns of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CacheError
from .feature_cache import FeatureCache, stream_rows
from .layout import as_keys, find
from .spec import joined_spec


class JoinedCache(FeatureCache):
    """The features of several caches as those of one, read-only: rows are matched by the images' content.

    Rows come in the first cache's order, with its paths, labels and splits; images that some cache lacks are left
    out, as `notes` tells. Of a cache of several views, view 0 is taken.

    Parameters
    ----------
    caches : sequence of FeatureCache
        Two or more, each made with another spec. They are closed with this one.

    Raises
    ------
    CacheError
        If they are of different classes, of images with different labels or splits, or of no image in common.
    """

    def __init__(self, caches: Sequence[FeatureCache]):
        first = caches[0]
        self.caches = tuple(caches)
        self.path = Path(" + ".join(str(cache.path) for cache in caches))
        for number, cache in enumerate(caches):
            _require_same_classes(first, cache)
            _require_another_spec(caches[:number], cache)
        places = np.stack([_places(first, cache) for cache in caches])
        kept = (places >= 0).all(axis=0)
        if not kept.any():
            raise CacheError(f"{self.path} have no image in common, so there is nothing to join.")
        self._places = places[:, kept]
        for cache, own in zip(caches[1:], self._places[1:], strict=True):
            _require_same_labels(first, cache, self._places[0], own)
        rows = self._places[0]
        self.labels, self.splits, self.digests = first.labels[rows], first.splits[rows], first.digests[rows]
        self.paths = [first.paths[row] for row in rows.tolist()]
        self.skipped = list(dict.fromkeys(skipped for cache in caches for skipped in cache.skipped))
        self.spec = joined_spec([cache.spec for cache in caches])
        self.meta = self._meta()
        self.parts = [{"features": cache.meta.get("label", ""), "spec_sha256": cache.spec.sha256,
                       "columns": cache.shape[-1]} for cache in caches]  # fmt: skip
        self.notes = (
            *(_left_out(cache, self.digests) for cache in caches if _lacking(cache, self.digests)),
            *(f"Of the {cache.views} views in {cache.path.name} the plain one is taken." for cache in caches
              if cache.views > 1),
        )  # fmt: skip

    def _meta(self) -> dict[str, Any]:
        metas = [cache.meta for cache in self.caches]
        meta = {**metas[0], "spec": self.spec.fields, "spec_sha256": self.spec.sha256,
                "seconds": sum(float(one.get("seconds") or 0) for one in metas)}  # fmt: skip
        for name in ("backbone", "label", "description"):
            values = [one.get(name) for one in metas]
            if None in values:
                meta.pop(name, None)  # a file that is not `extract`'s: whoever needs it says so
            else:
                meta[name] = {"joined": values} if name == "description" else "+".join(map(str, values))
        splits, sizes = np.unique(self.splits, return_counts=True)
        meta["counts"] = {**metas[0]["counts"], "splits": dict(zip(splits.tolist(), sizes.tolist(), strict=True))}
        return meta

    @property
    def sources(self) -> tuple[Path, ...]:
        """What to open to have the same again: each cache's path."""
        return tuple(cache.path for cache in self.caches)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), D the columns of all caches."""
        return len(self.labels), sum(cache.shape[-1] for cache in self.caches)

    @property
    def dtype(self) -> np.dtype:
        """The widest precision on disk."""
        return np.result_type(*(cache.dtype for cache in self.caches))

    @property
    def closed(self) -> bool:
        """Whether a file is closed."""
        return any(cache.closed for cache in self.caches)

    def close(self) -> None:
        """Close all files."""
        for cache in self.caches:
            cache.close()

    def read_rows(
        self, rows: np.ndarray | None = None, *, view: int | None = None, stored: bool = False
    ) -> np.ndarray:
        """Return the features at these positions (any order, repeats allowed; all by default) as float32."""
        if view:
            raise CacheError(f"{self.path} has no view {view}: of caches side by side there is view 0 alone.")
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        start = 0
        for cache, places in zip(self.caches, self._places, strict=True):
            stop = start + cache.shape[-1]
            out[:, start:stop] = cache.read_rows(places[rows], view=0)
            start = stop
        return out

    def stream(
        self, batch_rows: int = 4096, *, split: str | None = None, view: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions, features) in order, `batch_rows` at a time."""
        return stream_rows(self, batch_rows, split, view)


def open_caches(paths: Sequence[Path | str]) -> FeatureCache:
    """Open a cache file, or several side by side.

    Raises
    ------
    CacheError
        If one cannot be opened, or they do not belong together; see `JoinedCache`.
    """
    caches: list[FeatureCache] = []
    try:
        for path in paths:
            caches.append(FeatureCache.open(path))
        return caches[0] if len(caches) == 1 else JoinedCache(caches)
    except BaseException:
        for cache in caches:
            cache.close()
        raise


def _places(first: FeatureCache, other: FeatureCache) -> np.ndarray:
    """Return for each row of the first cache a row of the other with the same content, -1 where there is none."""
    if other is first:
        return np.arange(len(first))
    keys = as_keys(other.digests)
    order = np.argsort(keys, kind="stable")
    at, found = find(keys[order], as_keys(first.digests))
    return np.where(found, order[at], -1) if len(order) else np.full(len(first), -1)


def _require_same_classes(first: FeatureCache, other: FeatureCache) -> None:
    if first.classes != other.classes:
        odd = sorted(set(first.classes) ^ set(other.classes))
        how = f"{odd[0]!r} is a class of one alone" if odd else "they come in another order"
        raise CacheError(f"{first.path} and {other.path} have other class names: {how}. Extract both from the same "
                         "data set.")


def _require_another_spec(before: Sequence[FeatureCache], cache: FeatureCache) -> None:
    for other in before:
        if other.spec == cache.spec:
            raise CacheError(f"{other.path} and {cache.path} hold the same features (spec {cache.spec.short}): join "
                             "those of different backbones, layers or transforms.")


def _require_same_labels(first: FeatureCache, other: FeatureCache, rows: np.ndarray, places: np.ndarray) -> None:
    """Refuse caches that label or split an image otherwise; of several copies in the other, any may agree."""
    differs = (first.labels[rows] != other.labels[places]) | (first.splits[rows] != other.splits[places])
    if not differs.any():
        return
    known = {(key, label, split) for key, label, split in _facts(other)}
    ours = list(_facts(first))
    odd = [(row, place) for row, place in zip(rows[differs].tolist(), places[differs].tolist(), strict=True)
           if ours[row] not in known]
    if odd:
        row, place = odd[0]
        raise CacheError(
            f"{len(odd)} images have another label or split in {first.path} than in {other.path}, the first: "
            f"{first.paths[row]!r} is {_told(first, row)} and {other.paths[place]!r}, the same image, is "
            f"{_told(other, place)}. Extract both from the same data set."
        )


def _facts(cache: FeatureCache) -> Iterator[tuple[bytes, int, str]]:
    return zip(as_keys(cache.digests).tolist(), cache.labels.tolist(), cache.splits.tolist(), strict=True)


def _told(cache: FeatureCache, row: int) -> str:
    label = int(cache.labels[row])
    return f"{cache.classes[label] if label >= 0 else 'unlabelled'!r} in {cache.splits[row]}"


def _lacking(cache: FeatureCache, digests: np.ndarray) -> int:
    return int((~np.isin(as_keys(cache.digests), as_keys(digests))).sum())


def _left_out(cache: FeatureCache, digests: np.ndarray) -> str:
    return f"{_lacking(cache, digests)} images of {cache.path.name} are left out: another file has no features of them."
