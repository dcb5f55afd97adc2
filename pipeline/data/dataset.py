"""One type for every data set, and the one way to load it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, UnknownNameError, suggestion
from ..core.progress import Progress, shown, silent
from .builtin import DATASETS, TORCHVISION
from .class_names import in_one_spelling
from .containers import expand, is_contained, list_contained, title_of
from .decoding import read_bytes
from .digests import digest_files, memo_file
from .files import DEFAULT_LIMITS, Limits, Place, is_url
from .folders import layout_below
from .given import on_disk
from .listing import SPLITS, Samples, check_classes, first_few
from .remarks import label_remarks, missing_decoders
from .sources import CONTAINERS
from .splits import SplitRule, decide_splits
from .table_files import is_table, may_be_table
from .tables import list_tables, table_options


def without_limit(data: str) -> tuple[str, int | None]:
    """Split ``DATA[:N]`` into what names the data set and N.

    >>> without_limit("photos[:100]")
    ('photos', 100)
    """
    found = re.fullmatch(r"(.+)\[:(-?\d+)\]", data)
    return (found[1], int(found[2])) if found else (data, None)


def keep_first(samples: Samples, count: int) -> None:
    """Keep the first `count` images in listing order, taking from every class of every split in proportion.

    Of a folder without classes that is the first ones. The data set gets a name of its own, and so its own caches:
    those of the whole set stay, and rows are copied from one to the other.

    Raises
    ------
    DataError
        If there are more classes and splits than images may be taken.
    """
    groups = np.unique(np.char.add(samples.splits, samples.labels.astype("<U20")), return_inverse=True)[1]
    least = int(groups.max(initial=0)) + 1
    if count < least:
        raise DataError(f"A limit of {count} images is too low for {samples.name!r}: with a class and split each it "
                        f"takes {least} at the least.")
    if count >= len(samples.paths):
        return
    share = np.empty(len(groups))
    for group in range(least):
        members = np.flatnonzero(groups == group)
        share[members] = np.arange(len(members)) / len(members)
    kept = np.sort(np.argsort(share, kind="stable")[:count])
    samples.notes.append(f"Only {count:,} of {len(samples.paths):,} images, by the limit.")
    samples.paths = [samples.paths[index] for index in kept.tolist()]
    samples.labels, samples.splits = samples.labels[kept], samples.splits[kept]
    samples.name = f"{samples.name}-first-{count}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels and splits; N of them, whose content has been hashed but not yet decoded.

    Attributes
    ----------
    name : str
        The folder of its caches; safe as a file name.
    root : Path or Url
        Where `paths` start.
    paths : list of str
        As `os.fsdecode` gives them, with ``/``.
    labels : np.ndarray
        Shape (N,), int64: an index into `classes`, or -1 for an unlabelled image.
    splits : np.ndarray
        Shape (N,), ``"train"``, ``"val"``, ``"test"`` or ``"none"``.
    classes : tuple of str
        Sorted over all splits; empty when nothing is labelled.
    digests : np.ndarray
        Shape (N, 16), uint8: the first 16 bytes of the SHA-256 of each file's content.
    skipped : tuple of (str, str)
        Files that gave no sample, each with the reason.
    notes : tuple of str
        Remarks for the user, one line each.
    limits : Limits
        What one image may cost.
    """

    name: str
    root: Place
    paths: list[str]
    labels: np.ndarray
    splits: np.ndarray
    classes: tuple[str, ...]
    digests: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        splits, counts = np.unique(self.splits, return_counts=True)
        told = ", ".join(f"{count:,} {split}" for split, count in zip(splits.tolist(), counts.tolist(), strict=True))
        skipped = f"; {len(self.skipped):,} files skipped" if self.skipped else ""
        return f"<Dataset {self.name} in {self.root}: {told or 'no images'}; {len(self.classes)} classes{skipped}>"

    def read(self, index: int) -> bytes:
        """Return the content of the image file at `index`, for `decode`.

        Raises
        ------
        UnreadableImageError
            It cannot be read (any more).
        """
        return read_bytes(self.root / self.paths[index], self.limits)

    def part(self, indices: np.ndarray) -> Dataset:
        """Return the data set of these images alone, fit to be read by a process that stands in another folder."""
        root = self.root.absolute() if isinstance(self.root, Path) else self.root
        return replace(
            self, root=root, paths=[self.paths[index] for index in indices], labels=self.labels[indices],
            splits=self.splits[indices], digests=self.digests[indices], skipped=(), notes=(),
        )  # fmt: skip

    def select(self, split: str) -> np.ndarray:
        """Return the indices of a split's samples, shape (n,), int64.

        Raises
        ------
        UnknownNameError
            There is no such split.
        """
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        return np.flatnonzero(self.splits == split)


def load_dataset(
    data: Any,
    *,
    cache_dir: str | Path = "cache",
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_duplicates: bool = False,
    rehash: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | bool = silent,
) -> Dataset:
    """List and hash a data set.

    Parameters
    ----------
    data : str, or whatever `pipeline.data.given.on_disk` takes
        A name in `DATASETS`, ``torchvision:NAME``, a folder, a table (``labels.csv[label=breed]`` names its columns,
        see `pipeline.data.tables.table_options`), or what `list_contained` takes; ``[:N]`` behind it takes the first
        N images, see `pipeline.data.dataset.keep_first`.
    cache_dir : str or Path
        Keeps downloads and the memory of digests.
    val_fraction, test_fraction, group_duplicates
        How images without a given split are divided, see `pipeline.data.splits.SplitRule`.
    rehash : bool
        Read every file even if its size and times say that it is unchanged.
    limits : Limits
        What one image may cost.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        There is no such data set, or it cannot be used as it is.
    """
    progress = shown(progress)
    rule = SplitRule(val_fraction, test_fraction, group_duplicates)
    cache_dir = Path(cache_dir)
    data, limit = without_limit(on_disk(data, cache_dir))
    samples = _loader(data)(cache_dir, progress)
    in_one_spelling(samples)
    if limit is not None:
        keep_first(samples, limit)
    digests, failures = digest_files(
        samples.root,
        samples.paths,
        memo=memo_file(cache_dir),
        rehash=rehash,
        limits=limits,
        progress=progress,
    )
    digests = _drop(failures, samples, digests)
    meant = None
    if samples.from_folders and len(samples.classes) == 1 and isinstance(samples.root, Path) and samples.root.is_dir():
        meant = layout_below(samples.root)
    check_classes(samples.classes, samples.labels, samples.root, meant)
    samples.notes += decide_splits(samples, digests, rule, cache_dir, limits,
                                   lambda index: read_bytes(samples.root / samples.paths[index], limits), progress)
    dataset = Dataset(
        samples.name,
        samples.root,
        samples.paths,
        samples.labels,
        samples.splits,
        samples.classes,
        digests,
        tuple(samples.skipped),
        limits=limits,
    )
    return replace(dataset, notes=(*samples.notes, *missing_decoders(dataset.skipped), *label_remarks(dataset)))


def _loader(data: str) -> Callable[[Path, Progress], Samples]:
    if data in DATASETS:
        return DATASETS[data].load
    if data.startswith(TORCHVISION):
        from .torchvision_sets import list_torchvision

        return partial(list_torchvision, data.removeprefix(TORCHVISION))
    file, asked = table_options(data)
    tables = [] if is_url(data) else [Path(name) for name in expand(file, may_be_table)]
    if tables and all(map(is_table, tables)):
        return lambda _, progress: list_tables(tables, title_of(file), asked, progress)
    if asked:
        raise DataError(f"{file!r} is no table, so nothing can be said of its columns.")
    if is_contained(data) and not Path(data).expanduser().is_dir():
        return lambda _, progress: list_contained(data, progress)
    path = Path(data).expanduser()
    try:
        path.stat()
    except (OSError, ValueError) as error:
        raise DataError(_not_found(data, error)) from error
    if path.is_dir():
        return lambda _, progress: list_contained(data, progress)
    raise DataError(f"{data!r} is neither a folder of images nor a table of them (path,label[,split] as CSV, JSON "
                    f"lines or Parquet), nor one of {', '.join(CONTAINERS)}.{_hint(path)}")


def _hint(path: Path) -> str:
    """Return what to do with a file that may well hold a data set, but not one of ours."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        return " A spreadsheet is saved as CSV first."
    if suffix in (".gz", ".bz2", ".xz", ".zst"):
        return " It is compressed: unpack it first."
    return " JSON is taken as one object a line, in a file called .jsonl." if suffix == ".json" else ""


def _not_found(data: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    if Path(data).name != data or Path(data).suffix:
        return f"No such folder or CSV file: {data!r} ({reason})."
    known = [*sorted(DATASETS), f"{TORCHVISION}NAME"]
    return f"Unknown data set {data!r}, and no such folder here.{suggestion(data, known)}"


def _drop(failures: dict[int, str], samples: Samples, digests: np.ndarray) -> np.ndarray:
    """Move the samples that could not be hashed to the skipped ones; return the digests of the others."""
    if not failures:
        return digests
    samples.skipped += [(samples.paths[index], reason) for index, reason in failures.items()]
    keep = np.ones(len(samples.paths), bool)
    keep[list(failures)] = False
    samples.paths = [path for path, kept in zip(samples.paths, keep, strict=True) if kept]
    samples.labels, samples.splits = samples.labels[keep], samples.splits[keep]
    if not samples.paths:
        raise DataError(f"No usable image in {samples.root}: {first_few(map(': '.join, samples.skipped))}.")
    return digests[keep]
