"""Where a cache and its companions lie: the file, its lock, its shards, what was set aside."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .disk import Disk
from .spec import Spec

PART_ROWS = 1_000_000
"""Rows of a part of a cache, where nothing else is asked for: so many are one file."""

PART_NAME = re.compile(r"[0-9]{6,9}\.h5")
_PART_OR_UNFINISHED = re.compile(rf"{PART_NAME.pattern}|\.{PART_NAME.pattern}\.tmp")
_NAMED_BY_SPEC = re.compile(r"(?P<backbone>.+)-(?P<short>[0-9a-f]{12})")


def cache_path(cache_dir: Path, dataset: str, backbone: str, spec: Spec) -> Path:
    """Return ``<cache_dir>/<dataset>/<backbone>-<12 of the spec's sha256>.h5``; nothing is created.

    Characters that are awkward in a file name become ``_``: ``timm:vit`` is stored as ``timm_vit``.
    """
    return Path(cache_dir) / safe_name(dataset) / f"{safe_name(backbone)}-{spec.short}.h5"


def safe_name(name: str) -> str:
    """Return `name` made fit for one path component: letters, digits, ``._-``, at most 50 characters."""
    return re.sub(r"[^\w.-]+", "_", name)[:50].lstrip(".") or "_"


def split_name(path: Path) -> tuple[str, str | None]:
    """Return the backbone and the short spec digest that a cache's file name tells (None if it tells none)."""
    match = _NAMED_BY_SPEC.fullmatch(path.stem)
    return (match["backbone"], match["short"]) if match else (path.stem, None)


def owner(path: Path) -> Path:
    """Return the cache file that `path` belongs to: itself, or the one that it becomes, or was set aside from."""
    name = re.sub(r"\.(.+)\.tmp", r"\1", path.name)
    return path.with_name(re.split(r"@[0-9a-f]{8}\.h5|\.h5|\.partial|\.parts", name)[0] + ".h5")


@dataclass(frozen=True)
class CachePlaces:
    """The companions of the cache file `path`, all in its folder.

    Attributes
    ----------
    path : Path
        The complete file, replaced as a whole and never written in place.
    """

    path: Path

    @property
    def lock(self) -> Path:
        """The lock file; never deleted, because two holders could then lock two files."""
        return self.path.with_name(f".{self.path.stem}.lock")

    @property
    def partial(self) -> Path:
        """The folder of the plan and the shards committed so far."""
        return self.path.with_suffix(".partial")

    @property
    def plan(self) -> Path:
        """The record of what is being computed, in which blocks."""
        return self.partial / "plan"

    def shards(self) -> list[Path]:
        """List the committed shards, sorted by name."""
        return sorted(self.partial.glob("*.shard"))

    def shard(self, plan_id: str, block: int) -> Path:
        """Return the place of one block's shard."""
        return self.partial / f"{plan_id[:8]}-{block:06d}.shard"

    def remove_partial(self, disk: Disk) -> None:
        """Remove the plan and the shards."""
        if self.partial.is_symlink() or not self.partial.is_dir():
            return  # through somebody's link, other files than ours would be removed
        with suppress(OSError):  # what stays does no harm: the next run finds its rows known
            disk.unlink(self.plan)
            disk.sync_folder(self.partial)  # for good, because a plan with only some of its shards would be resumed
            for path in self.partial.iterdir():
                disk.unlink(path)
            disk.remove_folder(self.partial)

    @property
    def parts(self) -> Path:
        """The folder of the parts, where the rows are not in `path` itself; see `PartedCache`."""
        return owner(self.path).with_suffix(".parts")

    def part_files(self) -> list[Path]:
        """List whatever could be a part, sorted by name; no link is followed."""
        return [path for path in self._in_parts(PART_NAME) if not path.is_symlink()]

    def _in_parts(self, name: re.Pattern) -> list[Path]:
        if self.parts.is_symlink() or not self.parts.is_dir():
            return []
        return sorted(path for path in self.parts.iterdir() if name.fullmatch(path.name))

    def new_part(self) -> Path:
        """Return a name that no part has, after all others."""
        return self.parts / f"{max((int(path.stem) for path in self.part_files()), default=-1) + 1:06d}.h5"

    def remove_parts(self, disk: Disk, keep: Collection[str] = ()) -> None:
        """Remove all parts but some, and the folder if nothing else is left in it."""
        with suppress(OSError):  # what stays does no harm: the next run removes it
            for path in self._in_parts(_PART_OR_UNFINISHED):
                if path.name not in keep:
                    disk.unlink(path)
            if not self.parts.is_symlink() and self.parts.is_dir():
                disk.sync_folder(self.parts)
                if not any(self.parts.iterdir()):
                    disk.remove_folder(self.parts)

    def set_aside(self) -> list[Path]:
        """List the damaged or stale files set aside earlier, oldest first."""
        found = self.path.parent.glob(f"{glob.escape(self.path.name)}.corrupt*")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def next_aside(self) -> Path:
        """Return a name that no file has, for setting the present file aside."""
        number, name = 1, self.path.with_name(f"{self.path.name}.corrupt")
        while name.exists():
            number += 1
            name = self.path.with_name(f"{self.path.name}.corrupt-{number}")
        return name

    def of_root(self, root: str) -> Path:
        """Return where the rows of another folder of the same name are kept, see `CacheWriter.finish`."""
        return self.path.with_name(
            f"{self.path.stem}@{hashlib.sha256(root.encode(errors='replace')).hexdigest()[:8]}.h5"
        )

    def others(self) -> list[Path]:
        """List the files kept for other folders of the same name."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}@*.h5"))

    def siblings(self) -> list[Path]:
        """List the files of the same name in the neighbouring data sets' folders: same spec, other images."""
        folders = sorted(folder for folder in self.path.parent.parent.glob("*") if folder != self.path.parent)
        # os.path, because Path raises where a folder may not be read
        return [folder / self.path.name for folder in folders if os.path.isfile(folder / self.path.name)]  # noqa: PTH113
