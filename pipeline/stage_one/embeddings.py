"""Features that another program made, of texts, sounds or images, as a cache: what stage two and the audit work on."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.machine import installed
from ..data.files import DEFAULT_LIMITS
from ..data.listing import SPLIT_OF, UNDECIDED, Samples, safe_name
from ..data.remarks import label_remarks
from ..data.splits import SplitRule, decide_splits
from ..data.table_files import read_table, text_of
from ..data.tables import COLUMNS
from ..store import CacheWriter, FeatureCache, Spec, cache_path
from .extraction import Extraction

SOURCE = "given"
LIBRARIES = ("image-feature-pipeline", "numpy", "h5py")


def cache_embeddings(
    features: Any,
    labels: Sequence[Any] | None = None,
    splits: Sequence[Any] | None = None,
    *,
    paths: Sequence[str] | None = None,
    dataset_name: str | None = None,
    source: str = SOURCE,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    cache_dir: str | Path = "cache",
) -> Extraction:
    """Keep an array of features as a cache, so that heads, sweeps, comparison and audit work on it.

    Parameters
    ----------
    features : (N, D) or (N, V, D) array, path-like
        One row for each item, or one for each of V views of it; finite. float16 is kept as it is, all else as float32.
        Or a ``.npy`` file, or a Parquet file with a column of lists, whose columns `label`, `split` and `path` (or what
        else tables call these) are used where they are not given here.
    labels : (N,) sequence, optional
        Names or numbers; None, NaN, -1 or an empty text is no label.
    splits : (N,) sequence, optional
        ``train``, ``val`` or ``test``. Those left empty are decided by the rows, as images' are by their content.
    paths : (N,) sequence of str, optional
        What each row is of, for tables and lists; by default its number.
    dataset_name : str, optional
        By which the cache is filed: what it is of. By default the file's name; of an array, one by its content.
    source : str
        Which model made the features.
    val_fraction, test_fraction
        See `pipeline.data.splits.SplitRule`.

    Returns
    -------
    Extraction
        Its `path` is what ``features=`` of `train_head` and others takes. Equal rows share one.

    Raises
    ------
    DataError
        If rows, labels and splits do not match, or there is no such file or column.

    Examples
    --------
    >>> import pipeline
    >>> done = pipeline.cache_embeddings(X, y, source="all-MiniLM-L6-v2")    # doctest: +SKIP
    >>> pipeline.train_head("logistic", features=done.path)                  # doctest: +SKIP
    """
    begin, cache_dir = time.perf_counter(), Path(cache_dir)
    root = str(Path(features).absolute()) if isinstance(features, (str, Path)) else ""
    if root:
        features, told = _read(Path(root))
        labels, splits, paths = (given if given is not None else told.get(name) for given, name in
                                 ((labels, "label"), (splits, "split"), (paths, "path")))  # fmt: skip
    rows = _checked(features)
    name = dataset_name or (Path(root).stem if root else
                            f"embeddings-{hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()[:8]}")
    samples = _samples(len(rows), labels, splits, paths, name, root)
    digests = np.frombuffer(b"".join(hashlib.sha256(row.tobytes()).digest()[:16] for row in rows), np.uint8)
    digests = digests.reshape(len(rows), 16)
    rule = SplitRule(val_fraction, test_fraction)
    notes = decide_splits(samples, digests, rule, cache_dir, DEFAULT_LIMITS, lambda index: b"")
    spec = Spec({"given": source, "version": 1})
    path = cache_path(cache_dir, samples.name, source, spec)
    meta = {
        "dataset": samples.name, "root": root, "backbone": source, "label": source, "weights": "",
        "description": {"name": source, "given": True, "spec": spec.fields}, "origin": rule.to_dict(),
        "versions": {"python": platform.python_version(),
                     **{library: found for library in LIBRARIES if (found := installed(library))}},
    }  # fmt: skip
    with CacheWriter.open(path, spec) as writer:
        plan = writer.plan(digests)
        for number, block in enumerate(plan.blocks):
            writer.commit(number, np.ascontiguousarray(rows[block]))
        writer.finish(paths=samples.paths, labels=samples.labels, splits=samples.splits, classes=samples.classes,
                      meta=meta, seconds=0.0).close()  # fmt: skip
    with FeatureCache.open(path) as cache:
        notes += label_remarks(cache)
    computed = sum(map(len, plan.blocks))
    return Extraction(path, spec.sha256, len(rows), computed, plan.reused, 0, time.perf_counter() - begin, 0.0,
                      tuple(notes))


def _checked(features: Any) -> np.ndarray:
    rows = np.asarray(features)
    if rows.ndim not in (2, 3) or not rows.size or rows.dtype.kind not in "fiu":
        raise DataError(f"Features must be numbers (N, D), or (N, V, D) of V views, not {rows.dtype} {rows.shape}.")
    rows = rows if rows.dtype == np.float16 else rows.astype(np.float32, copy=False)
    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    if not finite.all():
        raise DataError(f"{int((~finite).sum())} of {len(rows)} rows hold NaN or infinity, the first at "
                        f"{int(np.flatnonzero(~finite)[0])}.")
    return rows


def _samples(
    count: int, labels: Sequence[Any] | None, splits: Sequence[Any] | None, paths: Sequence[str] | None, name: str,
    root: str,
) -> Samples:  # fmt: skip
    named = [_name(value) for value in labels] if labels is not None else [""] * count
    placed = [_name(value).lower() for value in splits] if splits is not None else [""] * count
    listed = list(map(str, paths)) if paths is not None else [f"{number:07d}" for number in range(count)]
    if not len(named) == len(placed) == len(listed) == count:
        raise DataError(f"There are {count} rows, {len(named)} labels, {len(placed)} splits and {len(listed)} names.")
    if unknown := sorted({split for split in placed if split not in {"", "none", *SPLIT_OF}}):
        raise DataError(f"Unknown split {unknown[0]!r}. Known: {', '.join(SPLIT_OF)}.")
    classes = tuple(sorted({label for label in named if label}))
    index = {label: number for number, label in enumerate(classes)}
    decided = [SPLIT_OF.get(split, UNDECIDED if label and split != "none" else "none")
               for split, label in zip(placed, named, strict=True)]
    return Samples(safe_name(name), Path(root), listed, np.array([index.get(label, -1) for label in named], np.int64),
                   np.array(decided, "<U5"), classes)


def _name(value: Any) -> str:
    missing = value is None or value != value or (isinstance(value, (int, np.integer)) and value == -1)
    return "" if missing else str(value).strip()


def _read(file: Path) -> tuple[np.ndarray, dict[str, list[str]]]:
    """Return a file's features, and what else its columns tell."""
    if file.suffix.lower() == ".npy":
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False), {}
        except (OSError, ValueError) as error:
            raise DataError(f"Cannot read {file}: {error}.") from error
    if file.suffix.lower() != ".parquet":
        raise DataError(f"{file}: features are read from .npy and .parquet files.")
    header, told, rows = _columns(file)
    lists = [name for name in header if rows and isinstance(rows[0][name], list)]
    if not lists:
        raise DataError(f"{file} has no column of lists, as features are; it has {', '.join(map(repr, header[:8]))}.")
    try:
        return np.array([row[lists[0]] for row in rows], np.float32), told
    except ValueError as error:
        raise DataError(f"{file}: the lists in {lists[0]!r} are not all of one length.") from error


def _columns(file: Path) -> tuple[list[str], dict[str, list[str]], list[dict[str, Any]]]:
    """Return a table's columns, its labels, splits and paths as far as it has any, and its rows."""
    header, records = read_table(file)
    rows = list(records)
    known = {name.lower(): name for name in reversed(header)}
    found = {kind: next((known[name] for name in usual if name in known), None) for kind, usual in COLUMNS.items()}
    told = {kind: [text_of(row.get(name), name, f"{file}, line {line}") for line, row in rows]
            for kind, name in found.items() if name}  # fmt: skip
    return header, told, [row for _, row in rows]


def read_labels(file: Path) -> dict[str, list[str]]:
    """Return the columns `label`, `split` and `path` of a table with a line for each row, those that there are.

    Raises
    ------
    DataError
        If it cannot be read, or has no labels.
    """
    header, told, _ = _columns(file)
    if "label" not in told:
        raise DataError(f"{file} has no column 'label'; its first line is {', '.join(map(repr, header[:8]))}.")
    return told
