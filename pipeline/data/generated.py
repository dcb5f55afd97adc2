"""Folders that this program makes itself: there in full, as made, or made again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .digests import digest_files, memo_file
from .listing import walk

MANIFEST = ".manifest.json"  # hidden, so that no listing takes note of it


def ensure(
    folder: Path,
    build: Callable[[Path], None],
    *,
    recipe: str,
    cache_dir: Path,
    progress: Progress = silent,
) -> None:
    """Have `build` fill a folder, unless it already did and every file is still as it was.

    The folder appears under its name only when it is complete, and another process that makes it at the same time
    does no harm. A process killed in the middle leaves a hidden folder beside it, which may be deleted.

    Parameters
    ----------
    folder : Path
        Where the files shall be.
    build : callable
        Fills the empty folder that it is given.
    recipe : str
        What `build` makes; another recipe means another content.
    cache_dir : Path
        Keeps the memory of digests, so that looking is quick.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        The place cannot be written.
    """

    def is_good() -> bool:
        return is_whole(folder, recipe, cache_dir, progress)

    if is_good():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            build(fresh)
            manifest = {"recipe": recipe, "files": _contents(fresh, cache_dir, progress)}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=0))
            _publish(fresh, folder, Path(scratch) / "old", is_good)
    except OSError as error:
        raise DataError(f"Cannot make {folder}: {error.strerror or error}.") from error


def is_whole(folder: Path, recipe: str, cache_dir: Path, progress: Progress = silent) -> bool:
    """Return whether a folder made by `ensure` is complete, by this recipe, and has no file changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest == {"recipe": recipe, "files": _contents(folder, cache_dir, progress)}
    except (OSError, ValueError):
        return False


def was_made(folder: Path) -> bool:
    """Return whether a folder was made by `ensure`, and not put there by hand."""
    return (folder / MANIFEST).exists()


def _contents(folder: Path, cache_dir: Path, progress: Progress) -> dict[str, str]:
    paths = [path for path, _ in walk(folder)]
    digests, failures = digest_files(folder, paths, memo=memo_file(cache_dir), progress=progress)
    return {path: failures.get(index) or digests[index].tobytes().hex() for index, path in enumerate(paths)}


def _publish(fresh: Path, folder: Path, old: Path, is_good: Callable[[], bool]) -> None:
    """Rename, unless another process was quicker; what else bears the name goes."""
    try:
        fresh.rename(folder)
    except OSError:
        if not is_good():
            folder.rename(old)
            fresh.rename(folder)
