"""Images that a program has in its hands, put where every command finds them: a table or a folder beside the caches.

What is given as rows, frames or arrays becomes files named by their content, once. From then on it is a data set like
any other: a run tells its name, and another process, a report or the command line opens it again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..core.errors import DataError
from .listing import safe_name
from .tables import COLUMNS

if TYPE_CHECKING:
    from .dataset import Dataset

FOLDER = "given"  # in the caches' folder
KINDS = ("a folder, file or name as text or Path; a list of (path, label) or (path, label, split); (paths, labels); a "
         "mapping from paths to labels; a pandas DataFrame with columns path, label and perhaps split; (arrays, "
         "labels) with uint8 arrays (N, H, W, 3); a Dataset of load_dataset; one of the package datasets")
Row = tuple[str, str, str]


def on_disk(data: Any, cache_dir: str | Path = "cache") -> str:
    """Return a data set as text that every command takes, written into `cache_dir` where it is none yet.

    Parameters
    ----------
    data : str, Path, rows, mapping, DataFrame, arrays with labels, Dataset, or datasets.Dataset
        Paths are relative to the present folder. None, NaN or an empty text is no label.
    cache_dir : path-like

    Raises
    ------
    DataError
        If it is nothing of these, or labels and images do not match.
    """
    place = Path(cache_dir) / FOLDER
    if isinstance(data, str):
        return data
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if hasattr(data, "digests") and hasattr(data, "splits"):  # a Dataset, which is made of what is here
        return _table(_rows_of(data), place, data.name)
    if hasattr(data, "save_to_disk"):
        return _saved(data, place)
    if hasattr(data, "columns") and hasattr(data, "itertuples"):
        return _table(_columns(data), place)
    if isinstance(data, Mapping):
        return _table(_checked(list(data), list(data.values())), place)
    if isinstance(data, (tuple, list)) and len(data) and isinstance(data[0], np.ndarray) and data[0].ndim > 1:
        return _pictures(data, place)
    if isinstance(data, tuple) and len(data) in (2, 3) and not isinstance(data[0], (str, os.PathLike)):
        return _table(_checked(*data), place)
    if isinstance(data, (list, tuple)) and all(isinstance(row, (tuple, list)) for row in data):
        return _table(_checked(*zip(*data, strict=True)) if data else [], place)
    raise DataError(f"Data cannot be {type(data).__name__} of this kind. Known: {KINDS}.")


def _rows_of(dataset: Dataset) -> list[Row]:
    names = [*dataset.classes, ""]  # -1 is the last
    every = zip(dataset.paths, dataset.labels.tolist(), dataset.splits.tolist(), strict=True)
    return [(str(dataset.root / path), names[label], "" if split == "none" else split) for path, label, split in every]


def _columns(frame: Any) -> list[Row]:
    known = {str(name).lower(): name for name in frame.columns}
    found = {kind: next((known[name] for name in names if name in known), None) for kind, names in COLUMNS.items()}
    if lacking := [kind for kind in ("path", "label") if found[kind] is None]:
        raise DataError(f"The frame has no column {' and no column '.join(lacking)}; it has "
                        f"{', '.join(map(repr, frame.columns))}. Rename one, as in "
                        f"frame.rename(columns={{...: {lacking[0]!r}}}).")
    return _checked(*(frame[name].tolist() for name in found.values() if name is not None))


def _checked(paths: Sequence[Any], labels: Sequence[Any], splits: Sequence[Any] | None = None) -> list[Row]:
    splits = [""] * len(paths) if splits is None else splits
    if not len(paths) == len(labels) == len(splits):
        raise DataError(f"There are {len(paths)} images, {len(labels)} labels and {len(splits)} splits.")
    return [(os.fspath(path), _text(label), _text(split))
            for path, label, split in zip(paths, labels, splits, strict=True)]


def _text(value: Any) -> str:
    missing = value is None or value != value or (isinstance(value, (int, np.integer)) and value == -1)
    return "" if missing else str(value)


def _table(rows: Iterable[Row], place: Path, name: str = "images") -> str:
    """Write a table, named by its content."""
    # of an archive's member, too, the path begins where the archive is
    content = _csv((path if "://" in path else os.path.abspath(path), label, split)  # noqa: PTH100
                   for path, label, split in rows)
    file = place / f"{safe_name(name)}-{_digest(content)}.csv"
    if not file.is_file():
        place.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(content)
        fresh.replace(file)
    return str(file)


def _csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([tuple(COLUMNS), *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _pictures(data: Sequence[Any], place: Path) -> str:
    """Write arrays as PNG files, which hold the very pixels, with a table of their labels."""
    if len(data) not in (2, 3):
        raise DataError("Arrays come with their labels: (arrays, labels) or (arrays, labels, splits).")
    arrays, *more = data
    if arrays.dtype != np.uint8 or arrays.ndim not in (3, 4) or (arrays.ndim == 4 and arrays.shape[3] not in (1, 3)):
        raise DataError(f"Arrays must be uint8 (N, H, W, 3) or (N, H, W), not {arrays.dtype} {arrays.shape}. Of floats "
                        "between 0 and 1: (255 * arrays).round().astype('uint8').")
    names = [f"{number:07d}.png" for number in range(len(arrays))]
    rows = _checked(names, *more)
    digest = hashlib.sha256(np.ascontiguousarray(arrays).tobytes())
    digest.update(repr(rows).encode())
    folder = place / f"arrays-{digest.hexdigest()[:12]}"
    table = f"{folder.name}.csv"  # whose name is the data set's

    def write(fresh: Path) -> None:
        for name, pixels in zip(names, arrays, strict=True):
            Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(fresh / name)
        (fresh / table).write_bytes(_csv(rows))

    _put(folder, write)
    return str(folder / table)


def _saved(data: Any, place: Path) -> str:
    """Write the image files of a data set of the package datasets as they are, named by its fingerprint."""
    parts = dict(data) if isinstance(data, Mapping) else {"": data}
    prints = "".join(f"{split}{getattr(part, '_fingerprint', '')}" for split, part in parts.items())
    folder = place / f"datasets-{_digest(prints.encode())}"
    table = f"{folder.name}.csv"

    def write(fresh: Path) -> None:
        rows: list[Row] = []
        for split, part in parts.items():
            image, label = _column(part, "Image"), _column(part, "ClassLabel")
            names = part.features[label].names
            undecoded = part.cast_column(image, type(part.features[image])(decode=False))
            for row in undecoded.select_columns([image, label]):
                found, of = row[image], row[label]
                path = found["path"] or ""
                if found["bytes"] is not None:
                    path = f"{len(rows):07d}{Path(path).suffix or '.img'}"
                    (fresh / path).write_bytes(found["bytes"])
                rows.append((path, names[of] if of is not None and of >= 0 else "", split))
        (fresh / table).write_bytes(_csv(rows))

    _put(folder, write)
    return str(folder / table)


def _column(part: Any, kind: str) -> str:
    """Return the name of the first column of a kind."""
    found = [name for name, feature in part.features.items() if type(feature).__name__ == kind]
    if not found:
        raise DataError(f"The data set has no column of the kind {kind}; it has {dict(part.features)}.")
    return found[0]


def _put(folder: Path, write: Any) -> None:
    """Fill a folder that is there whole or not at all."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        write(fresh)
        fresh.chmod(0o755)
        if not folder.is_dir():
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
