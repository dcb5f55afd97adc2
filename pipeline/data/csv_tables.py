"""Data sets that are a CSV file: ``path,label[,split]``, paths relative to the file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .files import INSIDE
from .listing import SPLIT_OF, UNDECIDED, Samples, first_few, safe_name

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    "label": ("label", "class", "class_name", "label_name", "target", "category", "y"),
    "split": ("split", "subset", "set"),
}
"""What a column may be called, the usual name first; capitals do not matter."""


class Row(NamedTuple):
    """One line of the file, by its number."""

    line: int
    path: str
    label: str
    split: str


def list_table(file: Path, progress: Progress = silent) -> Samples:
    """List the images that a CSV file names.

    Parameters
    ----------
    file : Path
        UTF-8, separated by commas, semicolons or tabs; the header names `path`, `label`, and perhaps `split`, or what
        else these may be called, see `COLUMNS`. A row without a label is unlabelled; one without a split goes to train
        or val by its content. Where a path does not exist as written, a backslash counts as a slash.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or names missing files, unknown splits or one path twice. Every
        kind of fault names its first few rows.
    """
    file = Path(os.path.abspath(file.expanduser()))  # noqa: PTH100
    with progress(desc="Listing", unit="file") as bar:
        rows, notes = [], list[str]()
        for row in _rows(file, notes):
            rows.append(row)
            bar.update(1)
        _check(rows, file)
    classes = tuple(sorted({row.label for row in rows if row.label}))
    index = {label: number for number, label in enumerate(classes)}
    return Samples(
        name=safe_name(file.stem),
        root=file.parent,
        paths=[row.path for row in rows],
        labels=np.array([index.get(row.label, -1) for row in rows], np.int64),
        splits=np.array([_split(row) for row in rows], "<U5"),
        classes=classes,
        notes=notes,
    )


def _split(row: Row) -> str:
    return SPLIT_OF[row.split.lower()] if row.split else UNDECIDED if row.label else "none"


def _rows(file: Path, notes: list[str]) -> Iterator[Row]:
    folder = os.fspath(file.parent)  # not a Path for each of a million rows
    try:
        # Names that are not UTF-8 come through as they do from the file system; Excel begins a file with a mark.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            separator = max(",;\t", key=stream.readline().count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator)
            header = [name.strip().lower() for name in next(reader, [])]
            places = _places(header, file)
            taken = {kind: header[place] for kind, place in zip(COLUMNS, places, strict=True) if place is not None}
            if other := [f"{kind} from {name!r}" for kind, name in taken.items() if name != kind]:
                notes.append(f"Columns of {file.name}: {', '.join(other)}.")
            for fields in reader:
                if fields:
                    yield _with_slashes(_row(fields, header, places, reader.line_num, file), folder)
    except (OSError, csv.Error) as error:
        raise DataError(f"Cannot read {file}: {error}.") from error


def _with_slashes(row: Row, folder: str) -> Row:
    if "\\" not in row.path or os.path.exists(os.path.join(folder, row.path)):  # noqa: PTH110, PTH118
        return row
    return row._replace(path=row.path.replace("\\", "/"))


def _places(header: list[str], file: Path) -> list[int | None]:
    found = {kind: next((name for name in names if name in header), None) for kind, names in COLUMNS.items()}
    missing = [kind for kind in ("path", "label") if found[kind] is None]
    if missing:
        raise DataError(
            f"{file} has no column {' and no column '.join(map(repr, missing))}; its first line is "
            f"{', '.join(map(repr, header[:8])) or 'empty'}. Expected: path,label or path,label,split."
        )
    return [None if name is None else header.index(name) for name in found.values()]


def _row(fields: list[str], header: list[str], places: list[int | None], line: int, file: Path) -> Row:
    if len(fields) != len(header):
        raise DataError(
            f"{file}, line {line}: {len(fields)} values where the header has {len(header)}: {first_few(fields)}. "
            "A name that holds the separator needs quotes."
        )
    path, label, split = (fields[place] if place is not None else "" for place in places)
    return Row(line, path, label.strip(), split.strip())


def _check(rows: list[Row], file: Path) -> None:
    if not rows:
        raise DataError(f"{file} names no image: there is nothing below its header.")
    seen: dict[str, int] = {}
    folder = os.fspath(file.parent)  # not a Path for each of a million rows
    faults: dict[str, Callable[[Row], bool]] = {
        "no path": lambda row: not row.path,
        f"an unknown split (known: {', '.join(SPLIT_OF)})": lambda row: row.split.lower() not in {"", *SPLIT_OF},
        "a split but no label": lambda row: bool(row.split) and not row.label,
        "a path for the second time": lambda row: seen.setdefault(row.path, row.line) != row.line,
        "a file that does not exist": lambda row: not (
            os.path.exists(os.path.join(folder, row.path)) or INSIDE.search(row.path)  # noqa: PTH110, PTH118
        ),
    }
    for what, is_faulty in faults.items():
        found = [f"{row.line} ({','.join(row[1:])!r})" for row in rows if is_faulty(row)]
        if found:
            raise DataError(f"{file} has {what} in line {first_few(found)}.")
