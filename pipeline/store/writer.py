"""Stage one's side of the cache: plan, commit block by block, finish.

Whatever happens in between (a kill, a power cut, a full disk), a committed block stays committed, and
the next run goes on with the same blocks to the same file.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CacheError
from ..progress import Progress, silent
from .disk import DISK, Disk
from .file import FeatureCache
from .finalise import Column, write_hdf5
from .keys import as_digests, as_keys, find, to_hex
from .lock import acquire
from .overlay import Overlay
from .paths import CachePlaces
from .plan import FAILED, UNKNOWN, BlockPlan, Ledger, Plan, shard_size
from .record import BrokenRecordError
from .sources import FileSource, Shard
from .spec import FORMAT_VERSION, Spec

_FULL = {errno.ENOSPC, errno.EDQUOT}


class CacheWriter:
    """The one process that may change a cache. Made by `open`; use it as a context manager.

    Attributes
    ----------
    path : Path
        The complete file, once `finish` has returned.
    notes : list of str
        What was found amiss and done about it, one line each, for the user.
    """

    def __init__(
        self, path: Path, spec: Spec, row_shape: tuple[int, ...], dtype: np.dtype,
        siblings: Sequence[Path] | None, root: str, progress: Progress, disk: Disk,
    ):  # fmt: skip
        self.path, self.spec, self.notes = path, spec, list[str]()
        self._places, self._disk, self._progress = CachePlaces(path), disk, progress
        self._row_shape, self._dtype, self._root = row_shape, dtype, root
        self._siblings = self._places.siblings() if siblings is None else list(siblings)
        self._row_bytes = prod(row_shape) * dtype.itemsize
        self._pending: dict[int, np.ndarray] = {}
        self._committing = threading.Lock()
        self._own: FileSource | None = None
        self._ledger = Ledger(np.empty((0, 16), np.uint8))
        self._lock = acquire(path, disk)

    @classmethod
    def open(
        cls, path: Path | str, spec: Spec, *, row_shape: tuple[int, ...], dtype: Any = np.float32,
        siblings: Sequence[Path] | None = None, root: Path | str = "", progress: Progress = silent, disk: Disk = DISK,
    ) -> CacheWriter:  # fmt: skip
        """Take the cache's lock.

        Parameters
        ----------
        path : path-like
            See `cache_path`.
        spec : Spec
        row_shape : tuple of int
            (D,), or (V, D) for V views.
        dtype : float32 or float16
        siblings : sequence of Path, optional
            Complete caches of the same spec whose rows may be copied; by default those of the same file
            name in the neighbouring data sets' folders.
        root : path-like
            The data set's root, noted in the file.
        progress : callable
            See `pipeline.progress`.

        Raises
        ------
        BusyError
            If another process holds the lock.
        """
        dtype = np.dtype(dtype).newbyteorder("<")
        if dtype not in (np.dtype("<f4"), np.dtype("<f2")) or len(row_shape) not in (1, 2):
            raise ValueError(f"A row is (D,) or (V, D) of float32 or float16, not {row_shape} of {dtype}")
        with _explained(Path(path), None):
            return cls(Path(path), spec, tuple(row_shape), dtype, siblings, os.fspath(root), progress, disk)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and let go of all files; committed blocks stay."""
        for source in self._ledger.sources:
            source.close()
        self._lock.release()

    # -- plan ---------------------------------------------------------------------------------------------

    def plan(self, digests: np.ndarray, *, retry_failed: bool = False) -> Plan:
        """Find the rows that exist and divide the rest into blocks.

        Rows are looked for in the complete file that is to be replaced, in siblings, in files set aside
        (their sound blocks), and in the shards of an interrupted run.

        Parameters
        ----------
        digests : (N, 16) uint8 array
            Content digest of each listed image; repeats are computed once.
        retry_failed : bool
            Try images again that failed before under the same spec (as is sensible after a limit was raised).

        Raises
        ------
        CacheError
            If the disk has too little room for what will be written.
        """
        ledger = self._ledger = Ledger(digests)
        self._learn_from_files(retry_failed)
        kept = BlockPlan.load(self._places.plan, self.spec)
        shards = self._open_shards()
        if kept and not self._fits(kept, shards, retry_failed):
            kept = None
        for shard in shards:  # of other plans: their rows are as good as any
            if kept is None or shard.plan_id != kept.id:
                ledger.learn(shard, failures=not retry_failed)
        return self._begin(kept, shards)

    def _learn_from_files(self, retry_failed: bool) -> None:
        if self.path.exists() or self.path.is_symlink():
            self._own = self._open_own()
            if self._own:
                self._ledger.learn(self._own, failures=not retry_failed)
        for path in [*self._siblings, *self._places.set_aside()]:
            with suppress(CacheError):  # no rows to be had there is no error here
                if len(self._ledger.unknown):
                    source = FileSource.open(path, self.spec, self._row_shape, self._dtype)
                    self._ledger.learn(source, failures=not retry_failed)

    def _open_own(self) -> FileSource | None:
        """Open the complete file; where it is damaged or stale, set it aside (its sound rows are used all the same)."""
        try:
            own = FileSource.open(self.path, self.spec, self._row_shape, self._dtype)
        except CacheError as error:
            self._set_aside(str(error))
            return None
        with self._progress(total=len(own.cache), desc="Verifying the cache", unit="rows") as bar:
            problems = own.cache.problems(bar.update)
        if not problems:
            return own
        own.close()
        self._set_aside(f"{self.path} is damaged: {problems[0]} ({len(problems)} such in all).")
        return None

    def _set_aside(self, why: str) -> None:
        aside = self._places.next_aside()
        self._disk.replace(self.path, aside)
        self._disk.sync_folder(self.path.parent)
        self.notes.append(f"{why} It was set aside as {aside.name}.")

    def _open_shards(self) -> list[Shard]:
        shards = []
        for path in self._places.shards():
            try:
                shards.append(Shard(path, self.spec, self._row_shape, self._dtype))
            except BrokenRecordError as error:
                self.notes.append(f"Shard {path.name} is not used: {error}. Its images are computed again.")
                self._disk.unlink(path)
        return shards

    def _fits(self, kept: BlockPlan, shards: list[Shard], retry_failed: bool) -> bool:
        """Tell whether the interrupted run's plan is still what this run needs."""
        if retry_failed and any(shard.failed for shard in shards):
            return False
        unknown = as_digests(self._ledger.keys[self._ledger.unknown])
        listed = find(self._ledger.keys, kept.keys)[1].all()
        return bool(listed and find(np.sort(kept.keys), as_keys(unknown))[1].all())

    def _begin(self, kept: BlockPlan | None, shards: list[Shard]) -> Plan:
        ledger, unknown = self._ledger, self._ledger.unknown
        plan = kept or BlockPlan(self.spec, ledger.keys[unknown], shard_size(len(unknown), self._row_bytes), self._root)
        blocks = plan.blocks()
        ledger.forget(find(ledger.keys, plan.keys)[0])
        done = {shard.block: shard for shard in shards if shard.plan_id == plan.id}
        for number, shard in done.items():
            if number < len(blocks) and shard.holds(blocks[number]):
                ledger.learn(shard)
        self._plan_id = plan.id
        for number, keys in enumerate(blocks):
            at = find(ledger.keys, keys)[0]
            if (ledger.source[at] == UNKNOWN).any():
                self._pending[number] = ledger.first[at]
        if self._pending:
            self._require_room()
        if self._pending and kept is None:
            self._disk.make_folder(self._places.partial)
            plan.save(self._disk, self._places.plan)
        return self._summary()

    def _summary(self) -> Plan:
        ledger, sources = self._ledger, self._ledger.source
        from_shards = [number for number, source in enumerate(ledger.sources) if isinstance(source, Shard)]
        blocks = dict(self._pending)
        return Plan(
            to_compute=np.sort(np.concatenate([np.empty(0, np.int64), *blocks.values()])),
            blocks=blocks,
            reused=int((sources[ledger.inverse] >= 0).sum()),
            resumed=int(np.isin(sources, from_shards).sum()),
            duplicates=len(ledger.inverse) - len(ledger.keys),
            known_failures=int((sources[ledger.inverse] == FAILED).sum()),
        )

    # -- commit -------------------------------------------------------------------------------------------

    def commit(
        self, block: int, rows: np.ndarray, failures: Mapping[int, str] | None = None, passing: Collection[int] = ()
    ) -> None:
        """Commit one block; once this returns, a power cut does not lose it. Any thread may call it.

        Parameters
        ----------
        block : int
            A key of ``plan.blocks``.
        rows : (n, ...) array
            One row for each image of the block that did not fail, in the block's order.
        failures : mapping, optional
            Listing position to the reason why that image has no row. The failure is remembered with the
            image's content, so that the next run does not try again.
        passing : collection of int, optional
            Those of the failures that may pass (a file that could not be read just now): not remembered.

        Raises
        ------
        ValueError
            If rows and images do not match in number, or a row holds NaN or infinity.
        CacheError
            If the disk is full.
        """
        failures = failures or {}
        positions = self._pending[block]
        keys = self._ledger.keys[self._ledger.inverse[positions]]
        failed = np.isin(positions, list(failures))
        rows = np.asarray(rows, dtype=self._dtype).reshape(-1, *self._row_shape)
        if len(rows) != len(positions) - len(failures) or failed.sum() != len(failures):
            raise ValueError(f"Block {block} has {len(positions)} images: {len(rows)} rows, {len(failures)} failures")
        if not np.isfinite(rows).all():
            raise ValueError(f"Block {block} has rows with NaN or infinity: report those images as failures")
        reasons = [failures[position] for position in positions[failed].tolist()]
        forgotten = to_hex(keys[np.isin(positions, list(passing))])
        path = self._places.shard(self._plan_id, block)
        with _explained(self.path, self._room_needed()):
            Shard.write(
                self._disk, path, self.spec, self._plan_id, block,
                keys[~failed], rows, dict(zip(to_hex(keys[failed]), reasons, strict=True)), forgotten,
            )  # fmt: skip
        shard = Shard(path, self.spec, self._row_shape, self._dtype)
        with self._committing:
            self._ledger.learn(shard)
            del self._pending[block]

    # -- finish -------------------------------------------------------------------------------------------

    def finish(
        self, *, paths: Sequence[str], labels: np.ndarray, splits: np.ndarray, classes: Sequence[str] = (),
        skipped: Sequence[tuple[str, str]] = (), meta: Mapping[str, Any] | None = None,
    ) -> FeatureCache:  # fmt: skip
        """Write the complete file, verify it, put it in place, and only then remove the shards.

        Rows of images that are no longer listed are dropped; nothing is written if nothing has changed.

        Parameters
        ----------
        paths, labels, splits
            One entry a listed image, in the order given to `plan`.
        classes : sequence of str
        skipped : sequence of (path, reason)
            Images that were skipped before they came to `plan`.
        meta : mapping, optional
            More fields for `meta`: library versions, seconds taken.

        Returns
        -------
        FeatureCache
            Open; the caller closes it.
        """
        if self._pending:
            raise ValueError(f"{len(self._pending)} blocks are not committed yet")
        state = self._ledger.source[self._ledger.inverse]
        overlay = self._overlay(np.flatnonzero(state >= 0), paths, np.asarray(labels), np.asarray(splits), classes)
        overlay.skipped.extend(self._skipped(np.flatnonzero(state == FAILED), paths, skipped))
        if self._own is None or not overlay.describes(self._own.cache):
            with _explained(self.path, self._room_needed()):
                self._publish(overlay, state >= 0, meta or {})
        self._remove_shards()
        return FeatureCache.open(self.path, spec=self.spec)

    def _overlay(self, good: np.ndarray, paths, labels, splits, classes) -> Overlay:
        return Overlay(
            paths=[paths[position] for position in good.tolist()],
            labels=labels[good].astype(np.int64),
            splits=splits[good],
            digests=as_digests(self._ledger.keys[self._ledger.inverse[good]]),
            classes=tuple(classes),
            skipped=[],
            root=self._root,
        )

    def _skipped(self, failed: np.ndarray, paths, skipped) -> list[tuple[str, str]]:
        images = self._ledger.inverse[failed].tolist()
        found = [(paths[at], self._ledger.reasons[image]) for at, image in zip(failed.tolist(), images, strict=True)]
        return sorted([*map(tuple, skipped), *found], key=lambda entry: os.fsencode(entry[0]))

    def _publish(self, overlay: Overlay, good: np.ndarray, meta: Mapping[str, Any]) -> None:
        images = self._ledger.inverse[good]
        shape = (len(images), *self._row_shape)
        features = Column(shape, self._dtype, lambda start, stop: self._ledger.read(images[start:stop]))
        columns = {"features": features, **overlay.columns()}
        self._require_room()
        with self._progress(total=2 * len(images), desc="Writing the cache", unit="rows") as bar:
            self._disk.publish(
                self.path,
                fill=lambda file: write_hdf5(file, columns, {**meta, **self._meta(overlay)}, bar.update),
                check=lambda path: _prove(path, self.spec, bar.update),
            )

    def _meta(self, overlay: Overlay) -> dict[str, Any]:
        ledger = self._ledger
        remembered = [at for at in ledger.reasons if at not in ledger.passing]
        return {
            "format": FORMAT_VERSION,
            "spec": self.spec.fields,
            "spec_sha256": self.spec.sha256,
            "classes": list(overlay.classes),
            "counts": overlay.counts(),
            "failed": dict(zip(to_hex(ledger.keys[remembered]), map(ledger.reasons.get, remembered), strict=True)),
            "root": self._root,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _remove_shards(self) -> None:
        folder = self._places.partial
        if not folder.is_dir():
            return
        self._disk.unlink(self._places.plan)  # first, and for good: a plan with half of its shards would be resumed
        self._disk.sync_folder(folder)
        with suppress(OSError):  # what stays is found useless by the next run
            for path in folder.iterdir():
                self._disk.unlink(path)
            self._disk.remove_folder(folder)

    # -- room on the disk ---------------------------------------------------------------------------------

    def _room_needed(self) -> int:
        """Bytes still to be written: the pending rows' shards, then the complete file beside all of them."""
        pending = sum(map(len, list(self._pending.values())))
        return pending * self._row_bytes + len(self._ledger.inverse) * (self._row_bytes + 300) + (1 << 20)

    def _require_room(self) -> None:
        needed, free = self._room_needed(), self._disk.free(self.path.parent)
        if free < needed:
            raise CacheError(
                f"Not enough room in {self.path.parent}: {_size(needed)} are needed and {_size(free)} are free. "
                "Free some, or choose another place with --cache-dir."
            )


def _prove(path: Path, spec: Spec, done) -> None:
    with FeatureCache.open(path, spec=spec) as cache:
        problems = cache.problems(done)
    if problems:
        raise CacheError(f"{path} was not stored as written: {problems[0]}. The disk may be failing.")


@contextmanager
def _explained(path: Path, needed: int | None) -> Iterator[None]:
    """Turn the system's errors into one line that tells what is kept and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and needed is not None:
            raise CacheError(
                f"The disk is full: {path} still needs {_size(needed)}. Committed rows are kept; "
                "free some room and run the same command again."
            ) from error
        raise CacheError(f"{path} cannot be written: {error}.") from error


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
