"""Data sets in archives, tables and stores: which files hold them, and one listing from all of these."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .files import Place, Url, is_url, place
from .folders import NamesInside, list_folder, list_tree
from .listing import IMAGE_SUFFIXES, SPLIT_OF, UNDECIDED, NothingFoundError, Samples, first_few, safe_name, walk
from .sources import CONTAINERS, find, is_container, open_container, open_store
from .sources.base import Source
from .sources.blobs import file_system

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{},]*(?:,[^{},]*)+)\}")
_MOST = 100_000  # files of a pattern


def list_contained(data: str, progress: Progress = silent) -> Samples:
    """List images that are in a folder, in archives or tables, or behind a URL.

    Parameters
    ----------
    data : str
        A folder; an archive, a Parquet or Arrow file; several, as ``shard-{000..127}.tar`` or ``train-*.parquet``;
        a folder with such files and no image; or the URL of any of these, or of a folder of images.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        It is missing, damaged, or holds no image.
    """
    if data.lower().endswith(PACKED):
        raise DataError(f"{data!r} cannot be read in place. Unpack it, or pack it again as .tar or .zip.")
    if not is_url(data) and Path(data).expanduser().is_dir():
        return _list_local_folder(Path(data).expanduser(), progress)
    if files := expand(data):
        return list_containers(files, title_of(data), progress)
    return _list_store(data, progress)


def is_contained(data: str) -> bool:
    """Return whether a name, if it is no folder, means an archive, a table or a store."""
    return is_url(data) or data.lower().endswith((*CONTAINERS, *PACKED))


def list_images(path: str | Path, progress: Progress = silent) -> list[Place]:
    """Return one image file, or every image below a folder or in an archive or table; labels play no part.

    Parameters
    ----------
    path : str or Path
        A file, taken whatever its name; a folder; or what `list_contained` takes.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        There is no such file or folder, or it holds no image.
    """
    text = os.fspath(path)
    if is_url(text) and text.lower().endswith(tuple(IMAGE_SUFFIXES)):
        return [Url(text)]
    path = Path(text).expanduser()
    try:
        is_folder = not is_url(text) and path.is_dir()
        if not is_folder and is_contained(text):
            return _places(list_contained(text, progress))
        if not is_folder and find(path) is None:
            path.stat()
    except (OSError, ValueError) as error:
        raise DataError(f"No such image or folder: {path} ({getattr(error, 'strerror', None) or error}).") from error
    if not is_folder:
        return [path]
    with progress(desc="Listing", unit="file") as bar:
        found: list[Place] = [path / name for name, reason in walk(path, bar=bar) if not reason]
    return found or _places(_list_local_folder(path, progress))


def _places(samples: Samples) -> list[Place]:
    return [samples.root / path for path in samples.paths]


def expand(data: str, known: Callable[[str], bool] = is_container) -> list[str]:
    """Return the files that a name or a pattern means; none if it means something else.

    Parameters
    ----------
    data : str
    known : callable
        Tells of a name whether it is one of these files: by default, of an archive or a table of images.

    >>> expand("a-{8..10}.tar")[:0]
    []
    """
    text = data if is_url(data) else os.path.abspath(Path(data).expanduser())  # noqa: PTH100
    if not known(text):
        return []
    if not is_url(text) and Path(text).exists():
        return [text] if Path(text).is_file() else []
    names = list(itertools.islice(_braces(text), _MOST + 1))
    if len(names) > _MOST:
        raise DataError(f"{data!r} means more than {_MOST:,} files.")
    found = [each for name in names for each in _globbed(name)]
    missing = [each for each in found if not is_url(each) and not Path(each).is_file()]
    if missing and len(found) == 1:
        raise DataError(f"No such file: {missing[0]!r}.")
    if missing or not found:
        where = f"{len(missing)} of {len(found)} files are missing, such as {missing[0]!r}" if found else "no such file"
        raise DataError(f"{data!r}: {where}.")
    return found


def _braces(text: str) -> Iterator[str]:
    """Yield what a shell makes of ``{000..127}`` and ``{a,b}``."""
    if found := _RANGE.search(text):
        first, last = found.groups()
        step = 1 if int(first) <= int(last) else -1
        options: Iterable[str] = (str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step))
    elif found := _CHOICE.search(text):
        options = found[1].split(",")
    else:
        yield text
        return
    for option in options:
        yield from _braces(text[: found.start()] + option + text[found.end() :])


def _globbed(name: str) -> list[str]:
    if not re.search(r"[*?\[]", name):
        return [name]
    if not is_url(name):
        return sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    system, path = file_system(name)
    try:
        return sorted(str(system.unstrip_protocol(found)) for found in system.glob(path))
    except Exception as error:
        raise DataError(f"Cannot list {name}: {error}.") from error


def title_of(data: str) -> str:
    """Return a data set's name from that of a file or pattern."""
    base = os.path.splitext(data.rstrip("/").rsplit("/", 1)[-1])[0]  # noqa: PTH122
    return safe_name(re.sub(r"\{[^}]*\}|[*?\[\]]", "", base) or data.rstrip("/").rsplit("/", 2)[-2])


def _list_local_folder(folder: Path, progress: Progress) -> Samples:
    try:
        return list_folder(folder, progress)
    except NothingFoundError:
        root = Path(os.path.abspath(folder))  # noqa: PTH100
        # what `datasets` keeps of earlier computations is named so, and is no part of the data
        files = [path for path, _ in walk(root) if is_container(path) and not Path(path).name.startswith("cache-")]
        if not files:
            raise
    return list_containers([str(root / path) for path in files], safe_name(root.name), progress, root)


def _list_store(url: str, progress: Progress) -> Samples:
    store = open_store(url)
    with progress(desc="Listing", unit="file") as bar:
        entries = []
        for entry in store.entries():
            entries.append(entry)
            bar.update(1)
    root, title = Url(store.location), title_of(f"{store.location}/")
    if not any(not reason for _, reason in entries):
        files = sorted(f"{root}/{name}" for name, _ in entries if is_container(name))
        if files:
            return list_containers(files, title, progress, root)
    samples = Samples.empty(title, root)
    list_tree(samples, NamesInside(entries), progress)
    return samples


def list_containers(
    files: Sequence[str], title: str, progress: Progress = silent, root: Place | None = None
) -> Samples:  # fmt: skip
    """List archives and tables as one data set.

    Parameters
    ----------
    files : sequence of str
        Absolute paths or URLs.
    title : str
        The data set's name.
    root : Path or Url, optional
        A folder that holds them all; by default the deepest one.
    """
    if root is None:
        root = place(files[0].rpartition("/")[0] if len(files) == 1 else _common(files))
    merged = Samples.empty(title, root)
    parts = []
    with progress(total=len(files), desc="Indexing", unit="file") as bar:
        for file in files:
            name = file[len(str(root).rstrip("/")) + 1 :]
            parts.append(_list_one(open_container(file, refresh=True), name))
            bar.update(1)
    _merge(parts, merged)
    if len(parts) == 1 and not files[0].lower().endswith((".parquet", ".arrow")):
        merged.root = place(files[0])  # members are known by their names alone
    else:
        for part in parts:
            prefix = f"{part.name}/"
            part.paths = [prefix + path for path in part.paths]
            part.skipped = [(prefix + path, reason) for path, reason in part.skipped]
    merged.paths = [path for part in parts for path in part.paths]
    merged.skipped = [entry for part in parts for entry in part.skipped]
    if not merged.paths:
        passed = first_few(f"{path!r} ({reason})" for path, reason in merged.skipped)
        raise NothingFoundError(f"No images in {first_few(files)}." + (f" Passed over: {passed}." if passed else ""))
    return merged


def _common(files: Sequence[str]) -> str:
    folders = [file.split("/")[:-1] for file in files]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
    return "/".join(level[0] for level in shared) or "/"


def _list_one(source: Source, name: str) -> Samples:
    samples = Samples.empty(name, place(source.location))
    told = source.labelled()
    if told is None:
        with suppress(NothingFoundError):  # another part may have some, and if not, that is said of all
            list_tree(samples, NamesInside(source.entries(), strip=True), silent)
        return samples
    samples.paths, samples.labels, samples.classes = list(told.names), told.labels, told.classes
    split = next((SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF), UNDECIDED)
    samples.splits = np.where(told.labels >= 0, split, "none").astype("<U5")
    samples.skipped = [entry for entry in source.entries() if entry[1]]
    return samples


def _merge(parts: Sequence[Samples], merged: Samples) -> None:
    """Bring the labels of all parts under one list of classes, those that have images."""
    used = {part.classes[label] for part in parts for label in np.unique(part.labels).tolist() if label >= 0}
    # class folders without an image are for `check_classes` to tell
    used |= {name for part in parts if part.from_folders for name in part.classes}
    merged.classes = tuple(sorted(used))
    index = {name: number for number, name in enumerate(merged.classes)}
    labels = []
    for part in parts:
        places = np.array([index.get(name, -1) for name in part.classes] + [-1], np.int64)
        labels.append(places[part.labels])
    merged.labels = np.concatenate(labels)
    merged.splits = np.concatenate([part.splits for part in parts])
    unused = sorted({name for part in parts for name in part.classes} - used)
    if unused:
        merged.notes.append(f"{len(unused)} classes have no image here and are left out: {first_few(unused)}.")
