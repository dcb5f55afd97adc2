"""Stage one's side of the cache: plan, commit block by block, finish.

Whatever happens in between (a kill, a power cut, a full disk), a committed block stays committed, and
the next run goes on with the same blocks to the same file.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CacheError
from ..core.progress import Progress, silent
from .disk import DISK, Disk, explained, hold, require_room
from .feature_cache import FeatureCache
from .layout import as_keys, find, to_hex
from .listing import ImageListing
from .paths import CachePlaces, split_name
from .plan import Plan
from .publishing import Publisher, part_rows_of, sweep
from .recovery import Recovery
from .row_index import FAILED, UNKNOWN, RowIndex, RowKind, Shard
from .spec import Spec


class CacheWriter:
    """The one process that may change a cache. Made by `open`; use it as a context manager.

    Examples
    --------
    >>> with CacheWriter.open(path, spec) as writer:  # doctest: +SKIP
    ...     plan = writer.plan(dataset.digests)
    ...     for number, images in enumerate(plan.blocks):
    ...         writer.commit(number, compute(images))
    ...     cache = writer.finish(paths=dataset.paths, labels=dataset.labels, splits=dataset.splits)
    """

    def __init__(
        self, path: Path, spec: Spec, siblings: Sequence[Path], part_rows: int | None, progress: Progress, disk: Disk
    ):
        self.path, self.spec, self.part_rows = path, spec, part_rows
        self._places, self._disk, self._progress, self._siblings = CachePlaces(path), disk, progress, list(siblings)
        self._recovery = Recovery(self._places, spec, disk, progress)
        self._index = RowIndex(np.empty((0, 16), np.uint8))
        self._plan_id = ""
        self._pending: dict[int, np.ndarray] = {}
        self._numbers: list[int] = []
        self._changing = threading.Lock()
        self._held = ExitStack()
        self._held.enter_context(hold(self._places.lock, str(path), disk))
        self._publisher = Publisher(self._places, spec, self._index, disk, progress, part_rows or part_rows_of(path))

    @classmethod
    def open(
        cls,
        path: Path | str,
        spec: Spec,
        *,
        siblings: Sequence[Path] | None = None,
        part_rows: int | None = None,
        progress: Progress = silent,
        disk: Disk = DISK,
    ) -> CacheWriter:
        """Take the cache's lock.

        Parameters
        ----------
        path : path-like
            See `cache_path`.
        spec : Spec
        siblings : sequence of Path, optional
            Complete caches of the same spec whose rows may be copied; by default those of the same file
            name in the neighbouring data sets' folders.
        part_rows : int, optional
            With more distinct images than these, the cache is made in parts, of at most so many rows each; by default
            as it was last, or `PART_ROWS`.
        progress : callable
            See `pipeline.core.progress`.

        Raises
        ------
        BusyError
            If another process holds the lock.
        CacheError
            If the folder cannot be written.
        ValueError
            If the path's name promises another spec.
        """
        path = Path(path)
        if not spec.sha256.startswith(split_name(path)[1] or ""):
            raise ValueError(f"{path} is not the place of a cache of spec {spec.short}")
        with explained(path, lambda: 0):
            siblings = CachePlaces(path).siblings() if siblings is None else siblings
            return cls(path, spec, siblings, part_rows, progress, disk)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and let go of all files; what is committed stays."""
        self._index.close()
        self._held.close()

    @property
    def notes(self) -> list[str]:
        """What was found amiss and done about it, one line each, for the user."""
        return self._recovery.notes

    def plan(self, digests: np.ndarray, *, retry_failed: bool = False, accelerated: bool = False) -> Plan:
        """Find the rows that exist, and divide the images that have none into blocks.

        Rows are looked for in the complete file that is to be replaced, in siblings, in files set aside
        (their sound blocks), and in the shards of interrupted runs.

        Parameters
        ----------
        digests : (N, 16) uint8 array
            Content digest of each listed image; repeats are computed once.
        retry_failed : bool
            Try images again that failed before under the same spec, as is sensible after a limit was raised.
        accelerated : bool
            Whether an accelerator will compute the rows, see `block_size`.

        Raises
        ------
        CacheError
            If the disk has too little room for what is to be written.
        """
        index = self._index = RowIndex(digests)
        self._publisher = replace(self._publisher, index=index)
        with explained(self.path, self._room_needed):
            plan, resumed = self._recovery.take(index, self._siblings, retry_failed, accelerated)
            for number, keys in enumerate(plan.blocks):
                images = find(index.keys, keys)[0]
                if (index.source[images] == UNKNOWN).any():
                    self._pending[number] = index.first[images]
            if self._pending and not resumed:
                self._disk.make_folder(self._places.partial)
                plan.save(self._disk, self._places.plan)
            if self._pending and index.kind:
                self.require_room(index.kind.bytes)
        self._plan_id, self._numbers = plan.id, list(self._pending)
        return self._summary()

    def _summary(self) -> Plan:
        index, state = self._index, self._index.state
        shards = [number for number, source in enumerate(index.sources) if isinstance(source, Shard)]
        blocks = list(self._pending.values())
        return Plan(
            to_compute=np.sort(np.concatenate([np.empty(0, np.int64), *blocks])),
            blocks=blocks,
            reused=int((state >= 0).sum()),
            resumed=int(np.isin(index.source, shards).sum()),
            duplicates=len(index.image) - len(index.keys),
            known_failures=int((state == FAILED).sum()),
        )

    def require_room(self, row_bytes: int) -> int:
        """Return the bytes that a run whose rows have this size will write; `CacheError` if there is no room for them.

        `plan` does it where rows of the cache are known already; otherwise the first `commit` does, unless this
        is called before.
        """
        needed = self._room_needed(row_bytes)
        require_room(self._disk, self.path.parent, needed)
        return needed

    def _room_needed(self, row_bytes: int | None = None) -> int:
        """Bytes still to be written: the pending rows' shards, and the complete file beside all of them."""
        row_bytes = row_bytes or (self._index.kind.bytes if self._index.kind else 0)
        pending = sum(map(len, list(self._pending.values())))
        written = pending + self._publisher.rows_to_write()
        return written * row_bytes + len(self._index.image) * 300 + (1 << 20)

    def commit(
        self,
        block: int,
        rows: np.ndarray,
        failures: Mapping[int, str] | None = None,
        passing: Collection[int] = (),
    ) -> None:
        """Commit one block; once this returns, a power cut does not lose it. Any thread may call it.

        Parameters
        ----------
        block : int
            Position in ``plan.blocks``.
        rows : (n, D) or (n, V, D) float32 or float16 array
            One row for each image of the block that did not fail, in the block's order.
        failures : mapping, optional
            Listing position to the reason why that image has no row. The failure is remembered with the
            image's content, so that the next run does not try again.
        passing : collection of int, optional
            Those of the failures that may pass (a file that could not be read just now): not remembered.

        Raises
        ------
        ValueError
            If rows and images do not match.
        CacheError
            If the disk is full, a row holds NaN or infinity, or the rows are not of the kind that the cache holds under
            this spec.
        """
        number = self._numbers[block]
        positions, failures = self._pending[number], failures or {}
        failed = np.isin(positions, list(failures))
        rows = rows if len(rows) else np.empty((0, 0), np.float32)
        self._check(block, rows, positions[~failed])
        keys = self._index.keys[self._index.image[positions]]
        header = {
            "spec_sha256": self.spec.sha256,
            "plan_id": self._plan_id,
            "block": number,
            "failed": dict(zip(to_hex(keys[failed]), map(failures.get, positions[failed].tolist()), strict=True)),
            "passing": to_hex(keys[np.isin(positions, list(passing))]),
        }
        path = self._places.shard(self._plan_id, number)
        with explained(self.path, self._room_needed):
            Shard.write(self._disk, path, header, keys[~failed], rows)
        with self._changing:
            self._index.learn(Shard(path, self.spec))
            del self._pending[number]

    def _check(self, block: int, rows: np.ndarray, images: np.ndarray) -> None:
        kind = RowKind.of(rows)
        if len(rows) != len(images):
            raise ValueError(f"Block {block}: {len(rows)} rows for {len(images)} images that did not fail")
        if broken := int((~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))).sum()):
            raise CacheError(
                f"The features of {broken} of {len(rows)} images have values that are NaN or infinite. If the weights "
                "are sound, numbers grew too large for the precision: try --precision float32 (or bfloat16, which "
                "holds as large ones)."
            )
        with self._changing:
            if self._index.kind is None and len(rows):
                self.require_room(kind.bytes)
            if self._index.kind not in (None, kind) and len(rows):
                raise CacheError(
                    f"{self.path} holds {self._index.kind}, but the rows just computed are {kind}: "
                    "the spec does not tell these apart."
                )

    def finish(
        self,
        *,
        paths: Sequence[str],
        labels: np.ndarray,
        splits: np.ndarray,
        classes: Sequence[str] = (),
        skipped: Sequence[tuple[str, str]] = (),
        meta: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> FeatureCache:
        """Write the complete file, verify it, put it in place, and only then remove the shards.

        Rows of images that are no longer listed are dropped. Nothing is written if nothing has changed. In parts,
        those stay as they are of whose rows enough are wanted still; all others are written anew.

        Parameters
        ----------
        paths, labels, splits
            One entry a listed image, in the order given to `plan`.
        classes : sequence of str
        skipped : sequence of (path, reason)
            Images that were skipped before they came to `plan`.
        meta : mapping, optional
            More fields for `meta`. ``root``, the data set's folder, is one that the store reads.
        seconds : float, optional
            Time taken so far.

        Returns
        -------
        FeatureCache
            Open; the caller closes it.
        """
        if self._pending:
            raise ValueError(f"{len(self._pending)} blocks are not committed yet")
        meta = {**(meta or {}), "seconds": seconds}
        listing = ImageListing.of(self._index, paths, labels, splits, classes, skipped, str(meta.get("root", "")))
        own = self._recovery.own
        if own is None or not listing.describes(own) or self._other_parts(own):
            with explained(self.path, self._room_needed):
                if own is not None and listing.displaces(own):
                    # two folders called `images` would otherwise take each other's rows away, run after run
                    self._disk.link(self.path, self._places.of_root(own.meta["root"]))
                if self._index.kind:
                    self.require_room(self._index.kind.bytes)
                self._publisher.publish(listing, meta)
                self._disk.unlink(self._places.of_root(listing.root))
                sweep(self._places, self._disk)
        self._places.remove_partial(self._disk)
        return FeatureCache.open(self.path, spec=self.spec)

    def _other_parts(self, own: FeatureCache) -> bool:
        """Tell whether parts of another size were asked for than the cache has."""
        if self.part_rows in (None, own.meta.get("part_rows")):
            return False
        return len(own.pieces) > 1 or len(np.unique(as_keys(own.digests))) > self.part_rows
