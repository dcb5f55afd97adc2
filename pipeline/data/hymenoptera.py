"""Ants and bees: the photographs of the PyTorch transfer-learning tutorial."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .download import fetch, unpack
from .folders import list_folder
from .generated import MANIFEST, ensure, was_made
from .listing import Samples

URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
FOLDER = "hymenoptera_data"  # in the archive, and beside other data sets
PHOTOGRAPHS = {"train": 244, "val": 153}
OWN_DATA = "PIPELINE_DATA"  # an environment variable: a folder that holds data sets already
_MAX_BYTES = 200 * 2**20  # the archive has about 47 million
_MAX_FILES = 2000


def list_hymenoptera(
    cache_dir: Path, progress: Progress = silent, *, url: str = URL, sha256: str | None = None
) -> Samples:
    """List the copy that is already there, or download one.

    Parameters
    ----------
    cache_dir : Path
        A copy may lie, and goes, in its ``downloads/hymenoptera_data``; before that, ``$PIPELINE_DATA`` is tried.
    progress : callable
        See `pipeline.core.progress`.
    url, sha256 : str
        The archive and, if known, what its content must be. Without, the first download's is written down, printed,
        and asked of every later one.

    Raises
    ------
    DataError
        It cannot be downloaded; the message says where to put a copy.
    """
    folder = find_copy(cache_dir)
    notes = []
    if folder is None:
        folder = cache_dir / "downloads" / FOLDER
        record = folder.with_name(f"{FOLDER}.json")

        def build(fresh: Path) -> None:
            notes.append(_download(url, fresh, record, sha256, progress))

        try:
            ensure(folder, build, recipe=f"{FOLDER} 1", cache_dir=cache_dir, progress=progress)
        except DataError as error:
            raise DataError(f"{error} {_instead(folder)}") from error
    samples = list_folder(folder, progress)
    samples.name = "hymenoptera"
    samples.notes += notes + _count(samples)
    return samples


def find_copy(cache_dir: Path) -> Path | None:
    """Return the folder of a copy that somebody else put there, if there is one."""
    places = [cache_dir / "downloads"]
    if os.environ.get(OWN_DATA):
        places.insert(0, Path(os.environ[OWN_DATA]).expanduser())
    for place in places:
        if (place / FOLDER / "train").is_dir() and not was_made(place / FOLDER):
            return place / FOLDER
    return None


def _download(url: str, fresh: Path, record: Path, sha256: str | None, progress: Progress) -> str:
    archive = fresh.parent / f"{FOLDER}.zip"
    known = sha256 or _recorded(record)
    try:
        found = fetch(url, archive, max_bytes=_MAX_BYTES, sha256=known, progress=progress)
    except DataError as error:
        hint = f" It is what an earlier download had; delete {record} to accept another." if known != sha256 else ""
        raise DataError(f"{error}{hint}") from error
    unpack(archive, fresh, top=FOLDER, max_bytes=_MAX_BYTES, max_files=_MAX_FILES, progress=progress)
    size = archive.stat().st_size
    record.write_text(json.dumps({"url": url, "bytes": size, "sha256": found}))
    return f"Downloaded {url}: {size:,} bytes, SHA-256 {found}."


def _instead(folder: Path) -> str:
    if was_made(folder):
        return f"The copy in {folder} is no longer as it was; to use it all the same, delete {folder / MANIFEST}."
    return f"To do without, put a copy by hand so that {folder}/train/ants exists."


def _recorded(record: Path) -> str | None:
    try:
        return str(json.loads(record.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _count(samples: Samples) -> list[str]:
    found = {split: int((samples.splits == split).sum()) for split in PHOTOGRAPHS}
    if found == PHOTOGRAPHS and samples.classes == ("ants", "bees"):
        return []
    expected = " and ".join(f"{count} {split}" for split, count in PHOTOGRAPHS.items())
    return [f"Expected {expected} photographs of ants and bees; this copy has {found} of {', '.join(samples.classes)}."]
