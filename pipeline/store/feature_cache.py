"""The complete cache, for reading: one file, or one that lists parts.

A cache in parts has every dataset of a cache but the features. Instead, `places` tells for each image which of the rows
of all parts, one after the other, is its; `meta` lists the parts with their rows and the digest of each one's `meta`,
which pins every byte of it. It is replaced as a whole; a part never changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..core.errors import CacheError, UnknownNameError
from ..core.frames import frame
from ..core.notebooks import html_table
from .blocks import CheckedReader, ignore
from .hdf5 import open_hdf5
from .layout import DATASETS, PLACES, PartError, StaleCacheError, as_keys, problem_of_parts, read_meta
from .paths import CachePlaces
from .spec import Spec

SPLITS = ("train", "val", "test", "none")


class FeatureCache:
    """The features of a data set, read-only.

    Every block of rows is checked against its digest when it is first read, so what a method returns is
    what was written, and nothing is read twice. Opening reads the structure and `meta` alone. Use it as a
    context manager, or call `close`.

    Examples
    --------
    >>> with FeatureCache.open("cache/flowers/efficientnet_lite0-0123456789ab.h5") as cache:  # doctest: +SKIP
    ...     X, y = cache.split("train")
    """

    notes: tuple[str, ...] = ()
    """Remarks for the user."""
    parts: Sequence[Mapping[str, Any]] = ()
    """Where this is made of several, what each gives: label, spec digest, number of columns. See `JoinedCache`."""

    def __init__(self, path: Path, file: h5py.File, meta: dict[str, Any], verify: bool):
        self.path = path
        self.meta = meta
        self._file = file
        self.reader = CheckedReader(file, path, meta["rows_per_block"], meta["block_sha256"], verify)

    @classmethod
    def open(cls, path: Path | str, *, spec: Spec | None = None, verify: bool = True) -> FeatureCache:
        """Open a complete cache file.

        Parameters
        ----------
        path : path-like
        spec : Spec, optional
            What the rows must have been made with.
        verify : bool
            False skips the check of each block's digest while reading.

        Raises
        ------
        CacheError
            If there is none, it is damaged or hostile (nothing is then read from it), or made with another spec.
        """
        path = Path(path)
        if not path.exists() and CachePlaces(path).shards():
            raise CacheError(f"{path} is not complete yet. Run the same `extract` again: committed rows are kept.")
        file = open_hdf5(path)
        try:
            cache = _kind_of(file)(path, file, read_meta(file, path), verify)
        except BaseException as error:
            outdated = isinstance(error, PartError) and _replaced(file, path)
            file.close()
            if outdated:  # a writer put another file in its place, and removed its parts, just now
                return cls.open(path, spec=spec, verify=verify)
            raise
        try:
            cache._require(spec)
        except BaseException:
            cache.close()
            raise
        return cache

    def _require(self, spec: Spec | None) -> None:
        if spec is None or spec == self.spec:
            return
        fields = "; ".join(f"{field}: {theirs!r}, not {ours!r}" for field, theirs, ours in spec.differences(self.spec))
        raise StaleCacheError(f"{self.path} was made with another spec ({fields}). Run `extract` again.")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def closed(self) -> bool:
        """Whether the file is closed, and nothing more can be read."""
        return not self._file

    def __repr__(self) -> str:
        if self.closed:
            return f"<FeatureCache {self.path}: closed>"
        counts = ", ".join(f"{count} {name}" for name, count in self.meta["counts"]["splits"].items())
        return f"<FeatureCache {self.path}: {self.shape} {self.dtype}; {counts}; {len(self.classes)} classes>"

    def _repr_html_(self) -> str:
        """Show a notebook how many images of each class every split holds."""
        if self.closed:
            return html_table(f"{self.path}: closed", (), ())
        splits = list(self.meta["counts"]["splits"])
        sizes = {split: np.bincount(self.labels[self.indices(split)], minlength=len(self.classes)) for split in splits}
        rows = [(name, *(int(sizes[split][label]) for split in splits)) for label, name in enumerate(self.classes)]
        return html_table(f"{self.path}: {self.shape} {self.dtype}", ("class", *splits), rows)

    @property
    def sources(self) -> tuple[Path, ...]:
        """What to open to have the same again: its own path."""
        return (self.path,)

    @property
    def pieces(self) -> tuple[FeatureCache, ...]:
        """The ordinary caches that hold the rows: itself, or its parts."""
        return (self,)

    @property
    def datasets(self) -> list[str]:
        """The datasets of its file, but `meta`."""
        return [name for name in (PLACES, *DATASETS) if name in self._file]

    @cached_property
    def spec(self) -> Spec:
        """What the rows were made with."""
        return Spec(self.meta["spec"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position among them."""
        return tuple(self.meta["classes"])

    @cached_property
    def features(self) -> h5py.Dataset:
        """The features as they lie in the file; what is read through this is not checked."""
        return self._file["features"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D), or (N, V, D) with V cached views."""
        return self.features.shape

    @property
    def views(self) -> int:
        """V, the views of each image; view 0 is the plain one."""
        return 1 if len(self.shape) == 2 else self.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The precision on disk: float32 or float16."""
        return self.features.dtype

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64; -1 is unlabelled."""
        return self.reader.read("labels")

    @cached_property
    def splits(self) -> np.ndarray:
        """(N,) str: train, val, test or none."""
        return self.reader.read("splits").astype(str)

    @cached_property
    def digests(self) -> np.ndarray:
        """(N, 16) uint8: the first half of the SHA-256 of each image file."""
        return self.reader.read("digests")

    @cached_property
    def paths(self) -> list[str]:
        """Image files relative to the data set's root, as `os.fsdecode` gives them."""
        return [os.fsdecode(path) for path in self.reader.read("paths").tolist()]

    @cached_property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of each image that has no row."""
        paths = [os.fsdecode(path) for path in self.reader.read("skipped_paths").tolist()]
        reasons = [reason.decode(errors="replace") for reason in self.reader.read("skipped_reasons").tolist()]
        return list(zip(paths, reasons, strict=True))

    def problems(self, done: Callable[[int], Any] = ignore) -> list[str]:
        """Check every block that has not been checked yet; name the damaged ones (dataset and rows).

        Parameters
        ----------
        done : callable
            Told the number of features rows just checked.
        """
        return [
            f"{self.reader.describe(name, block)} do not match their digest"
            for name in self.datasets
            for block in self.reader.bad_blocks(name, done=done if name == "features" else ignore)
        ]

    def indices(self, split: str, *, unlabelled: bool = False) -> np.ndarray:
        """Return the positions of a split's rows, ascending; those without a label only if asked for.

        Raises
        ------
        UnknownNameError
            If there is no such split; one of the usual names may be empty.
        """
        chosen = self.splits == split
        if split not in SPLITS and not chosen.any():
            raise UnknownNameError("split", split, dict.fromkeys((*SPLITS, *np.unique(self.splits).tolist())))
        return np.flatnonzero(chosen if unlabelled else chosen & (self.labels >= 0))

    def split(self, name: str, *, view: int | None = None, unlabelled: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return a split's features and labels.

        Parameters
        ----------
        name : str
            ``"train"``, ``"val"``, ``"test"`` or ``"none"``.
        view : int, optional
            For a cache of several views, the one to take; all by default.
        unlabelled : bool
            Also return images that have no label (-1).

        Returns
        -------
        X : (n, D) or (n, V, D) float32 array
        y : (n,) int64 array
        """
        rows = self.indices(name, unlabelled=unlabelled)
        return self.read_rows(rows, view=view), self.labels[rows]

    def read_rows(
        self, rows: np.ndarray | None = None, *, view: int | None = None, stored: bool = False
    ) -> np.ndarray:
        """Return the features at these positions (any order, repeats allowed; all by default) as float32.

        With `stored`, in the type in which they are stored.
        """
        if view is not None and not 0 <= view < self.views:
            raise CacheError(f"{self.path} has no view {view}: it holds {self.views} of each image, numbered from 0.")
        view = None if len(self.shape) == 2 else view
        found = self.reader.read("features", rows, view)
        return found if stored else found.astype(np.float32, copy=False)

    def to_frame(self, features: bool = False) -> Any:
        """Return a pandas data frame, a row an image: path, label (None where there is none) and split.

        With `features`, also a column a feature, of the plain view.
        """
        names = [*self.classes, None]  # -1 is the last
        every = zip(self.paths, self.labels.tolist(), self.splits.tolist(), strict=True)
        found = frame({"path": path, "label": names[label], "split": split} for path, label, split in every)
        if not features:
            return found
        rows = self.read_rows(view=0)
        columns = type(found)(rows, columns=[f"feature_{number}" for number in range(rows.shape[1])])
        return found.join(columns)

    def stream(
        self, batch_rows: int = 4096, *, split: str | None = None, view: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions, features) in the file's order, about `batch_rows` at a time.

        Whole blocks are read, so memory is bounded by the batch, or by one block where that is larger.
        """
        size = self.reader.rows_per_block
        step = max(1, batch_rows // size) * size
        wanted = np.arange(len(self)) if split is None else self.indices(split)
        for start in range(0, len(self), step):
            rows = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + step)]
            if len(rows):
                yield rows, self.read_rows(rows, view=view)


def stream_rows(
    cache: FeatureCache, batch_rows: int, split: str | None, view: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (positions, features) of all rows or a split's, in order, `batch_rows` at a time."""
    wanted = np.arange(len(cache)) if split is None else cache.indices(split)
    for start in range(0, len(wanted), batch_rows):
        rows = wanted[start : start + batch_rows]
        yield rows, cache.read_rows(rows, view=view)


def _kind_of(file: h5py.File) -> type[FeatureCache]:
    if PLACES not in file:
        return FeatureCache

    return PartedCache


def _replaced(file: h5py.File, path: Path) -> bool:
    """Tell whether an open file is no longer the one of this name."""
    try:
        opened, now = os.fstat(file.id.get_vfd_handle()), path.stat()
    except OSError:  # removed
        return True
    return (opened.st_dev, opened.st_ino) != (now.st_dev, now.st_ino)


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
        if problem := problem_of_parts(meta.get("parts")):
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

    def read_rows(
        self, rows: np.ndarray | None = None, *, view: int | None = None, stored: bool = False
    ) -> np.ndarray:
        """Return the features at these positions, see `FeatureCache.read_rows`."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        tail = self.shape[1:] if view is None or len(self.shape) == 2 else self.shape[2:]
        out = np.empty((len(rows), *tail), self.dtype if stored else np.float32)
        for piece, mine, places in self._split(rows):
            out[mine] = piece.read_rows(places, view=view, stored=stored)
        return out

    def stream(
        self, batch_rows: int = 4096, *, split: str | None = None, view: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (positions, features) in order, `batch_rows` at a time."""
        return stream_rows(self, batch_rows, split, view)


def describe(part: FeatureCache) -> dict[str, Any]:
    """Return what the list of parts says of one."""
    return {"name": part.path.name, "rows": len(part), "meta_sha256": part.meta["meta_sha256"]}


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
