"""Take stock before computing anything: which rows exist, which plan is under way, what is damaged."""

from __future__ import annotations

import numpy as np

from ..core.errors import CacheError
from ..core.progress import Progress
from .disk import Disk
from .feature_cache import FeatureCache
from .layout import PartError, find
from .paths import CachePlaces
from .plan import BlockPlan, BrokenRecordError, block_size
from .row_index import RowIndex, Shard, open_sources, sources_of
from .spec import Spec


class Recovery:
    """Everything on disk that bears on one cache. The caller holds the lock.

    Attributes
    ----------
    own : FeatureCache or None
        The cache that the run will replace, if it is sound.
    notes : list of str
        What was found amiss and done about it, one line each.
    """

    def __init__(self, places: CachePlaces, spec: Spec, disk: Disk, progress: Progress):
        self.own: FeatureCache | None = None
        self.notes: list[str] = []
        self._places, self._spec, self._disk, self._progress = places, spec, disk, progress

    def take(self, index: RowIndex, siblings: list, retry_failed: bool,
             accelerated: bool = False) -> tuple[BlockPlan, bool]:  # fmt: skip
        """Enter every row that exists into the index, and divide the images that have none, see `block_size`.

        Returns
        -------
        plan : BlockPlan
            What is still to be computed, including what is committed of it.
        resumed : bool
            Whether that plan is an interrupted run's.
        """
        self._learn_from_files(index, siblings, retry_failed)
        shards = self._open_shards()
        kept = BlockPlan.load(self._places.plan, self._spec)
        committed = [shard for shard in shards if kept and shard.plan_id == kept.id]
        for shard in shards:
            if not kept or shard.plan_id != kept.id:  # of a plan that was given up: its rows are as good as any
                index.learn(shard, failures=not retry_failed)
        if kept and self._still_fits(kept, index) and not (retry_failed and any(s.failed for s in committed)):
            self._resume(kept, index, committed)
            return kept, True
        for shard in committed:
            index.learn(shard, failures=not retry_failed)
        unknown = index.unknown
        return BlockPlan(self._spec, unknown, block_size(len(unknown), accelerated)), False

    def _learn_from_files(self, index: RowIndex, siblings: list, retry_failed: bool) -> None:
        self.own = self._open_own()
        path = self._places.path
        for source in sources_of(self.own) if self.own is not None else open_sources(path, self._spec):
            index.learn(source, failures=not retry_failed)
        for path in [*siblings, *self._places.others(), *self._places.set_aside()]:
            for source in open_sources(path, self._spec) if len(index.unknown) else ():
                index.learn(source, failures=not retry_failed)

    def _open_own(self) -> FeatureCache | None:
        """Open the complete cache. If its file is damaged or stale, set that aside; sound rows are found there.

        If only a part is damaged or missing, everything stays where it is until the new file takes its place.
        """
        path = self._places.path
        if not path.exists():
            return None
        try:
            own = FeatureCache.open(path, spec=self._spec)
        except PartError as error:
            self.notes.append(f"{error} What it lacks is made again.")
            return None
        except CacheError as error:
            self._set_aside(str(error))
            return None
        with self._progress(total=len(own), desc="Verifying the cache", unit="rows") as bar:
            in_file = FeatureCache.problems(own, bar.update)  # of its own file, the list of the parts
            problems = in_file or own.problems(bar.update)
        if not problems:
            return own
        own.close()
        why = f"{path} is damaged ({problems[0]}; {len(problems)} such in all)."
        if in_file:
            self._set_aside(why)
        else:
            self.notes.append(f"{why} Its sound rows are kept.")
        return None

    def _set_aside(self, why: str) -> None:
        aside = self._places.next_aside()
        self._disk.replace(self._places.path, aside)
        self._disk.sync_folder(aside.parent)
        self.notes.append(f"{why} It was set aside as {aside.name}.")

    def _open_shards(self) -> list[Shard]:
        shards = []
        for path in self._places.shards():
            try:
                shards.append(Shard(path, self._spec))
            except BrokenRecordError as error:
                self._disk.unlink(path)
                self.notes.append(f"{path.name} was removed: {error}. Its images are computed again.")
        return shards

    def _still_fits(self, kept: BlockPlan, index: RowIndex) -> bool:
        """Tell whether the interrupted plan's images are all listed, and all others known."""
        listed = find(index.keys, kept.keys)[1]
        planned = find(np.sort(kept.keys), index.unknown)[1]
        return bool(listed.all() and planned.all())

    def _resume(self, plan: BlockPlan, index: RowIndex, committed: list[Shard]) -> None:
        # even where a row has turned up elsewhere since, so that the outcome is the uninterrupted run's
        index.forget(find(index.keys, plan.keys)[0])
        for shard in committed:
            if shard.block < len(plan.blocks) and shard.holds(plan.blocks[shard.block]):
                index.learn(shard)
