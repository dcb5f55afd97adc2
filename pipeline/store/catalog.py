"""The caches on disk: list them, verify one, find the nearest, remove some."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..progress import Progress, silent
from .blocks import Digester
from .disk import DISK, Disk
from .file import FeatureCache
from .layout import DATASETS
from .lock import hold
from .paths import CachePlaces, split_name
from .record import BrokenRecordError, read_record
from .spec import Spec


@dataclass(frozen=True)
class CacheEntry:
    """One cache, as `cache ls` shows it.

    Attributes
    ----------
    path : Path
        The complete file, which need not exist (see `state`); or a file set aside.
    dataset, backbone, spec : str
        As the path tells; `spec` is the short digest, empty if the name has none.
    rows : int
        Rows in the file, or committed so far. 0 where that cannot be told.
    bytes : int
        On disk, everything that belongs to the entry.
    modified : float
        Seconds since the epoch.
    state : str
        ``complete``, ``partial`` (shards of an unfinished run), ``corrupt`` (damaged, or set aside) or
        ``stale`` (its content does not belong to its name).
    problem : str
        Why it is not complete.
    """

    path: Path
    dataset: str
    backbone: str
    spec: str
    rows: int
    bytes: int
    modified: float
    state: str
    problem: str = ""

    @property
    def age(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.modified)


def list_caches(cache_dir: Path | str) -> list[CacheEntry]:
    """List everything under `cache_dir`, by data set and file name; features are not read."""
    entries = []
    for folder in sorted(path for path in Path(cache_dir).glob("*") if path.is_dir()):
        for path in sorted(folder.iterdir()):
            if path.suffix == ".h5" and not path.name.startswith("."):
                entries.append(_complete(path))
            elif path.suffix == ".partial" and path.is_dir():
                entries.append(_partial(path))
            elif ".h5.corrupt" in path.name:
                entries.append(_entry(path, [path], 0, "corrupt", "set aside", name=Path(path.name.split(".h5.")[0])))
    return entries


def _entry(
    path: Path, files: Sequence[Path], rows: int, state: str, problem: str = "", name: Path | None = None
) -> CacheEntry:
    backbone, short = split_name(name or path)
    stats = [file.stat() for file in files]
    return CacheEntry(
        path, path.parent.name, backbone, short or "", rows, sum(stat.st_size for stat in stats),
        max((stat.st_mtime for stat in stats), default=0.0), state, problem,
    )  # fmt: skip


def _complete(path: Path) -> CacheEntry:
    try:
        with FeatureCache.open(path) as cache:
            return _entry(path, [path], len(cache), "complete")
    except CacheError as error:
        state = "stale" if "promises spec" in str(error) or "format version" in str(error) else "corrupt"
        return _entry(path, [path], 0, state, str(error))


def _partial(folder: Path) -> CacheEntry:
    rows = 0
    for shard in folder.glob("*.shard"):
        try:
            rows += len(read_record(shard)[1]["digests"])
        except (BrokenRecordError, KeyError):
            continue
    return _entry(folder.with_suffix(".h5"), list(folder.iterdir()), rows, "partial", "not finished")


def verify_cache(path: Path | str, progress: Progress = silent) -> list[str]:
    """Check a complete cache to the last bit.

    Returns
    -------
    list of str
        One entry a problem, naming the dataset and the rows; empty if all is well.
    """
    try:
        cache = FeatureCache.open(path)
    except CacheError as error:
        return [str(error)]
    with cache, progress(total=2 * len(cache), desc="Verifying", unit="rows") as bar:
        return cache.problems(bar.update) or _problems_of_wholes(cache, bar.update)


def _problems_of_wholes(cache: FeatureCache, done: Any) -> list[str]:
    """Compare each dataset's digest over all its bytes, the one that others can check without our blocks."""
    problems = []
    size = cache.reader.rows_per_block
    for name in DATASETS:
        dataset, digester = cache.reader.file[name], Digester()
        for start in range(0, len(dataset), size):
            digester.update(dataset[start : start + size])
            done(size if name == "features" else 0)
        if digester.sha256 != cache.meta["sha256"].get(name):
            problems.append(f"{name!r} does not match its digest")
    return problems


def nearest(cache_dir: Path | str, dataset: str, spec: Spec) -> tuple[Path, list[tuple[str, Any, Any]]] | None:
    """Find the complete cache of `dataset` whose spec differs least.

    Returns
    -------
    path, differences
        See `Spec.differences`: (field, theirs, ours). None if the data set has no complete cache.
    """
    found = []
    for path in sorted((Path(cache_dir) / dataset).glob("*.h5")):
        try:
            with FeatureCache.open(path) as cache:
                found.append((path, spec.differences(cache.spec)))
        except CacheError:
            continue
    return min(found, key=lambda pair: len(pair[1]), default=None)


def superseded(entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Return all but the newest complete cache of each data set and backbone, for ``--keep-newest``."""
    newest: dict[tuple[str, str], CacheEntry] = {}
    complete = [entry for entry in entries if entry.state == "complete"]
    for entry in sorted(complete, key=lambda entry: entry.modified):
        newest[entry.dataset, entry.backbone] = entry
    return [entry for entry in entries if newest.get((entry.dataset, entry.backbone)) not in (None, entry)]


def unused(entries: Sequence[CacheEntry], used_specs: Collection[tuple[str, str]]) -> list[CacheEntry]:
    """Return the complete caches that no run was trained on, for ``--unused``.

    Parameters
    ----------
    entries : sequence of CacheEntry
    used_specs : collection of (dataset, sha256)
        What the runs refer to.
    """
    used = {(dataset, sha256[:12]) for dataset, sha256 in used_specs}
    return [entry for entry in entries if entry.state != "partial" and (entry.dataset, entry.spec) not in used]


def remove(entry: CacheEntry, disk: Disk = DISK) -> int:
    """Remove an entry and return the bytes freed.

    Raises
    ------
    BusyError
        If a process is writing that cache.
    """
    path = entry.path if entry.path.suffix == ".h5" else entry.path.with_name(entry.path.name.split(".h5.")[0] + ".h5")
    places = CachePlaces(path)
    with hold(places.lock, str(path), disk):
        if entry.state == "partial":
            for file in [places.plan, *places.partial.iterdir()]:
                disk.unlink(file)
            disk.remove_folder(places.partial)
        else:
            disk.unlink(entry.path)
        disk.sync_folder(path.parent)
    return entry.bytes
