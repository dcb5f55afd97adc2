"""The caches on disk: list them, verify one, find the nearest, remove some."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CacheError
from ..core.progress import Progress, silent
from .blocks import Digester
from .disk import DISK, Disk, hold
from .feature_cache import FeatureCache
from .hdf5 import open_hdf5, parts_listed
from .layout import StaleCacheError, read_meta
from .paths import CachePlaces, owner, safe_name, split_name
from .plan import read_header
from .publishing import sweep
from .spec import Spec

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CacheEntry:
    """One cache, as `cache ls` shows it.

    Attributes
    ----------
    path : Path
        The file; for a partial cache the folder of its shards or parts; for an unreadable data set its folder.
    dataset, backbone, spec : str
        As the path tells; `spec` is the short digest, empty if the name has none.
    rows : int
        Rows in the file, or committed so far; 0 where that cannot be told.
    bytes : int
        Size on disk.
    modified : float
        Seconds since the epoch.
    state : str
        ``complete``; ``partial`` (an unfinished run's shards); ``corrupt`` (damaged, or set aside for it);
        ``stale`` (sound, but not what its name or this program's version promises); ``unreadable`` (another user's).
    problem : str
        Why it is not complete.
    views : int
        Of each image in a complete file, else 0.
    precision, layer, storage, root : str
        What its rows were made with, and the folder that it describes; empty where it is not complete.
    classes : int
        0 where it is not complete.
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
    views: int = 0
    precision: str = ""
    layer: str = ""
    storage: str = ""
    root: str = ""
    classes: int = 0

    @property
    def age(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.modified)


def roots(cache_dir: Path, dataset: str) -> Iterator[tuple[str, Path]]:
    """Yield the folder that each cache of a data set describes, and the cache; damaged ones describe none."""
    for path in sorted((cache_dir / safe_name(dataset)).glob("*.h5")):
        with suppress(CacheError), open_hdf5(path) as file:
            root = read_meta(file, path).get("root", "")
            yield str(root), path


def list_caches(cache_dir: Path | str) -> list[CacheEntry]:
    """List everything under `cache_dir`, by data set and file name. No features are read."""
    folders = sorted(path for path in Path(cache_dir).glob("*") if path.is_dir())
    return [entry for folder in folders for entry in _in_folder(folder)]


def _in_folder(folder: Path) -> Iterator[CacheEntry]:
    if not os.access(folder, os.R_OK | os.X_OK):
        why = "this user may not read the folder"
        yield CacheEntry(folder, folder.name, "", "", 0, 0, folder.stat().st_mtime, UNREADABLE, why)
        return
    for path in sorted(folder.iterdir()):
        yield from _entries(path)


def _entries(path: Path) -> Iterator[CacheEntry]:
    if path.name.startswith("."):
        return
    if path.suffix == ".partial" and path.is_dir():
        shards = [read_header(shard).get("arrays", {}) for shard in path.glob("*.shard")]
        yield _entry(path, sum(arrays["digests"][1][0] for arrays in shards if arrays), "partial", "not finished")
    elif path.suffix == ".parts" and path.is_dir():
        places = CachePlaces(path.with_suffix(".h5"))
        if places.part_files() and not places.path.exists() and not places.others():
            rows = sum(_facts(part)["rows"] for part in places.part_files())
            yield _entry(path, rows, "partial", "parts without the file that lists them")
    elif path.suffix == ".h5":
        yield _entry(path, **_facts(path))
    elif ".h5.corrupt" in path.name:
        yield _entry(path, 0, "corrupt", "set aside")


def _facts(path: Path) -> dict[str, Any]:
    """Return what a cache file says of itself, or why it says nothing."""
    if not os.access(path, os.R_OK):
        return {"rows": 0, "state": UNREADABLE, "problem": "this user may not read the file"}
    try:
        with FeatureCache.open(path) as cache:
            made = cache.meta.get("description", {})
            return {"rows": len(cache), "state": "complete", "views": cache.views, "classes": len(cache.classes),
                    "root": cache.meta.get("root", ""), "precision": made.get("precision", ""),
                    "layer": made.get("layer", ""), "storage": made.get("storage", "")}  # fmt: skip
    except CacheError as error:
        return {"rows": 0, "state": "stale" if isinstance(error, StaleCacheError) else "corrupt", "problem": str(error)}


def _entry(path: Path, rows: int, state: str, problem: str = "", **facts: Any) -> CacheEntry:
    backbone, short = split_name(owner(path))
    files = [file.stat() for file in (path.iterdir() if state == "partial" else [path, *_parts_of(path)])]
    size, modified = sum(stat.st_size for stat in files), max((stat.st_mtime for stat in files), default=0.0)
    return CacheEntry(path, path.parent.name, backbone, short or "", rows, size, modified, state, problem, **facts)


def _parts_of(path: Path) -> list[Path]:
    try:
        names = {part["name"] for part in parts_listed(path).get("parts", [])}
    except CacheError:
        return []
    return [file for file in CachePlaces(path).part_files() if file.name in names]


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


def _problems_of_wholes(cache: FeatureCache, done: Callable[[int], Any]) -> list[str]:
    """Compare each dataset's digest over all its bytes: the one that others can check, who know no blocks."""
    problems = []
    for one in dict.fromkeys((cache, *cache.pieces)):
        size = one.meta["rows_per_block"]
        for name in one.datasets:
            dataset, digester = one.reader.file[name], Digester()
            for start in range(0, len(dataset), size):
                digester.update(dataset[start : start + size])
                done(min(size, len(dataset) - start) if name == "features" else 0)
            if digester.sha256 != one.meta["sha256"].get(name):
                problems.append(f"{name!r} does not match its digest in {one.path.name}")
    return problems


def nearest(cache_dir: Path | str, dataset: str, spec: Spec) -> tuple[Path, list[tuple[str, Any, Any]]] | None:
    """Find the complete cache of `dataset` whose spec differs least.

    Returns
    -------
    path, differences
        The latter as `Spec.differences` gives them: (field, theirs, ours). None if there is no complete cache.
    """
    found = []
    for path in sorted((Path(cache_dir) / safe_name(dataset)).glob("*.h5")):
        with suppress(CacheError), FeatureCache.open(path) as cache:
            found.append((path, spec.differences(cache.spec)))
    return min(found, key=lambda pair: len(pair[1]), default=None)


def superseded(entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Return what ``--keep-newest`` removes: all that is not the newest complete cache of its data set and backbone.

    Data sets and backbones that have no complete cache keep everything.
    """
    newest: dict[tuple[str, str], CacheEntry] = {}
    for entry in sorted(entries, key=lambda entry: entry.modified):
        if entry.state == "complete":
            newest[entry.dataset, entry.backbone] = entry
    old = [entry for entry in entries if newest.get((entry.dataset, entry.backbone), entry) is not entry]
    return [entry for entry in old if entry.state != UNREADABLE]


def unused(entries: Sequence[CacheEntry], used: Collection[tuple[str, str]]) -> list[CacheEntry]:
    """Return what ``--unused`` removes: all but unfinished caches and the complete ones that a run was trained on.

    Parameters
    ----------
    entries : sequence of CacheEntry
    used : collection of (data set, sha256 of the spec)
        What the runs refer to.
    """
    kept = {(dataset, sha256[:12]) for dataset, sha256 in used}
    wanted = [entry for entry in entries if entry.state == "complete" and (entry.dataset, entry.spec) in kept]
    return [entry for entry in entries if entry.state not in ("partial", UNREADABLE) and entry not in wanted]


def remove(entry: CacheEntry, disk: Disk = DISK) -> int:
    """Remove an entry and return the bytes freed.

    Raises
    ------
    BusyError
        If a process is writing that cache.
    """
    places = CachePlaces(owner(entry.path))
    with hold(places.lock, str(places.path), disk):
        if entry.path == places.parts:
            places.remove_parts(disk)
        elif entry.state == "partial":
            places.remove_partial(disk)
        else:
            disk.unlink(entry.path)
        if entry.path.suffix == ".h5":
            sweep(places, disk)
        disk.sync_folder(entry.path.parent)
    return entry.bytes
