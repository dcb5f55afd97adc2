"""A cache in parts: one file says which images there are, ordinary cache files beside it hold their rows.

The file has every dataset of a cache but the features. Instead, `places` tells for each image which of the rows of
all parts, one after the other, is its; `meta` lists the parts with their rows and the digest of each one's `meta`,
which pins every byte of it. It is replaced as a whole; a part never changes.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import CacheError
from .blocks import ignore
from .disk import Disk
from .file import FeatureCache, stream_rows
from .keys import as_keys
from .layout import PLACES
from .meta import PartError, read_meta
from .paths import PART_NAME, CachePlaces
from .structure import open_hdf5

PARTS_AT_MOST = 1000  # in one cache; all are open while it is read, and systems allow a process 1024 files
_SHA256 = re.compile("[0-9a-f]{64}")


class PartedCache(FeatureCache):
    """A cache whose rows lie in several files; it reads like any other.

    Raises
    ------
    CacheError
        If what it says of its parts cannot be.
    PartError
        If a part is missing, a link, or another file than it was.
    """

    def __init__(self, path: Path, file: h5py.File, meta: dict[str, Any], verify: bool):
        super().__init__(path, file, meta, verify)
        if problem := _problem_of_list(meta.get("parts")):
            raise CacheError(f"{path} is damaged: {problem}. Run `extract` again.")
        self._pieces: list[FeatureCache] = []
        try:
            _require_files(path, meta["parts"])
            for part in meta["parts"]:
                self._pieces.append(_open_part(path, part, verify))
            self._require_alike()
        except BaseException:
            self._close_pieces()
            raise
        self._starts = np.cumsum([0, *map(len, self._pieces)])

    def _require_alike(self) -> None:
        first = self._pieces[0]
        for piece in self._pieces:
            if (piece.spec, piece.shape[1:], piece.dtype) != (self.spec, first.shape[1:], first.dtype):
                raise PartError(f"{piece.path} holds rows of another kind than the other parts of {self.path}. "
                                "Run `extract` again.")

    @property
    def pieces(self) -> tuple[FeatureCache, ...]:
        """The parts."""
        return tuple(self._pieces)

    @property
    def features(self) -> h5py.Dataset:
        """Not in one place; see `pieces`."""
        raise CacheError(f"The features of {self.path} are in {len(self._pieces)} parts: take `read_rows` or `stream`.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), or (N, V, D) with V cached views."""
        return (len(self._file[PLACES]), *self._pieces[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """The precision on disk: float32 or float16."""
        return self._pieces[0].dtype

    @cached_property
    def places(self) -> np.ndarray:
        """(N,) int64: each row's position among the rows of all parts, one after the other."""
        places = self.reader.read(PLACES)
        if len(places) and not 0 <= places.min() <= places.max() < self._starts[-1]:
            raise CacheError(f"{self.path} is damaged: it asks for rows that its parts do not have. "
                             "Run `extract` again.")
        return places

    def close(self) -> None:
        """Close all files."""
        self._close_pieces()
        super().close()

    def _close_pieces(self) -> None:
        for piece in self._pieces:
            piece.close()

    def problems(self, done: Callable[[int], Any] = ignore) -> list[str]:
        """Check every block of every file that has not been checked yet; name the damaged ones."""
        found = super().problems(done)
        for piece in self._pieces:
            found += [f"{problem} in the part {piece.path.name}" for problem in piece.problems(done)]
        return found or self._misplaced()

    def _misplaced(self) -> list[str]:
        try:
            self.places  # noqa: B018
        except CacheError as error:
            return [str(error)]
        every, keys = np.arange(len(self)), as_keys(self.digests)
        wrong = sum(int((keys[mine] != as_keys(piece.digests)[rows]).sum()) for piece, mine, rows in self._split(every))
        return [f"{wrong} images have another image's row"] if wrong else []

    def _split(self, rows: np.ndarray) -> Iterator[tuple[FeatureCache, np.ndarray, np.ndarray]]:
        """Yield each part that holds some of these rows, which of them (positions in `rows`), and where it does."""
        places = self.places[rows]
        numbers = np.searchsorted(self._starts, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            yield self._pieces[number], mine, places[mine] - self._starts[number]

    def read_rows(self, rows: np.ndarray | None = None, *, view: int | None = None) -> np.ndarray:
        """Return the features at these positions (any order, repeats allowed; all by default) as float32."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        tail = self.shape[1:] if view is None or len(self.shape) == 2 else self.shape[2:]
        out = np.empty((len(rows), *tail), np.float32)
        for piece, mine, places in self._split(rows):
            out[mine] = piece.read_rows(places, view=view)
        return out

    def stream(
        self, batch_rows: int = 4096, *, split: str | None = None, view: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions, features) in order, `batch_rows` at a time."""
        return stream_rows(self, batch_rows, split, view)


def describe(part: FeatureCache) -> dict[str, Any]:
    """Return what the list of parts says of one."""
    return {"name": part.path.name, "rows": len(part), "meta_sha256": part.meta["meta_sha256"]}


def parts_listed(path: Path) -> dict[str, Any]:
    """Return the `meta` of a cache in parts, without looking at the parts; empty if it is not in parts.

    Raises
    ------
    CacheError
        If there is no such file, or it is damaged.
    """
    with open_hdf5(path) as file:
        meta = read_meta(file, path)
        listed = PLACES in file
    if listed and (problem := _problem_of_list(meta.get("parts"))):
        raise CacheError(f"{path} is damaged: {problem}.")
    return meta if listed else {}


def sweep(places: CachePlaces, disk: Disk, needed: Collection[str] = ()) -> None:
    """Remove the parts that no cache file lists, superseded or a killed run's, but those needed still.

    The caller holds the lock.
    """
    if not places.parts.exists():
        return
    named = set(needed)
    for path in (places.path, *places.others()):
        try:
            named |= {part["name"] for part in parts_listed(path).get("parts", [])} if path.exists() else set()
        except CacheError:
            return  # nobody knows what it lists
    places.remove_parts(disk, named)


def _problem_of_list(parts: Any) -> str | None:
    """Tell what is wrong with a list of parts, before any name in it is used."""
    if not isinstance(parts, list) or not 0 < len(parts) <= PARTS_AT_MOST:
        return f"its 'meta' must list 1 to {PARTS_AT_MOST} parts"
    for part in parts:
        if not isinstance(part, dict) or part.keys() != {"name", "rows", "meta_sha256"}:
            return "its list of parts is malformed"
        if not (isinstance(part["name"], str) and PART_NAME.fullmatch(part["name"])):
            return f"{part['name']!r} is no name of a part"
        if type(part["rows"]) is not int or not 0 < part["rows"] < 2**40:
            return f"part {part['name']} cannot have {part['rows']!r} rows"
        if not (isinstance(part["meta_sha256"], str) and _SHA256.fullmatch(part["meta_sha256"])):
            return f"part {part['name']} has no digest"
    return "a part is listed twice" if len({part["name"] for part in parts}) < len(parts) else None


def _require_files(path: Path, parts: list[dict[str, Any]]) -> None:
    folder = CachePlaces(path).parts
    if folder.is_symlink():
        raise PartError(f"{folder} is a link, which is not followed. Put the folder itself there.")
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    missing = [part for part in parts if part["name"] not in present]
    if missing:
        first = folder / missing[0]["name"]
        others = f" ({len(missing)} of {len(parts)} parts are missing)" if len(missing) > 1 else ""
        raise PartError(f"{first} is missing, a part of {path} with {missing[0]['rows']:,} rows{others}. "
                        "Put it back, or run `extract` again: only missing rows are computed.")


def _open_part(path: Path, described: dict[str, Any], verify: bool) -> FeatureCache:
    file = CachePlaces(path).parts / described["name"]
    try:
        kind = file.lstat().st_mode
    except OSError as error:
        raise PartError(f"{file}, a part of {path}, is gone: {error.strerror}.") from error
    if not stat.S_ISREG(kind):
        raise PartError(f"{file}, a part of {path}, is not a regular file, so it is not read.")
    try:
        part = FeatureCache.open(file, verify=verify)
    except CacheError as error:
        raise PartError(f"A part of {path} cannot be read: {error}") from error
    if type(part) is not FeatureCache or describe(part) != described:
        part.close()
        raise PartError(f"{file} is not the part that {path} lists. Put that one back, or run `extract` again: "
                        "rows that can be used are kept.")
    return part
