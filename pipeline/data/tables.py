"""Data sets that are a table: a path, a label and perhaps a split in each row, in one file or one file a split."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from ..core.errors import DataError, UnknownNameError
from ..core.progress import Progress, silent
from .class_names import decoded
from .files import INSIDE
from .listing import SPLIT_OF, UNDECIDED, Samples, first_few, why_no_image_name
from .table_files import read_table, text_of

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name",
             "image_id", "img", "id"),
    "label": ("label", "class", "class_name", "label_name", "target", "category", "y"),
    "split": ("split", "subset", "set"),
}  # fmt: skip
"""What a column may be called, the usual name first; capitals do not matter."""

IMAGES = "images"
_ASKED = re.compile(r"(.+?)\[((?:\w+=[^\[\]=,]+)(?:,\w+=[^\[\]=,]+)*)\]")


class Row(NamedTuple):
    """One line of a table, by its number."""

    line: int
    path: str
    label: str
    split: str


def table_options(data: str) -> tuple[str, dict[str, str]]:
    """Split ``FILE[path=…,label=…,split=…,images=…]`` into the file and what is said of its columns.

    >>> table_options("labels.csv[path=photo,images=photos]")
    ('labels.csv', {'path': 'photo', 'images': 'photos'})

    Raises
    ------
    UnknownNameError
        Something else is said.
    """
    found = _ASKED.fullmatch(data)
    if not found:
        return data, {}
    asked = dict(part.split("=", 1) for part in found[2].split(","))
    for name in asked:
        if name not in (*COLUMNS, IMAGES):
            raise UnknownNameError("option of a table", name, (*COLUMNS, IMAGES))
    return found[1], asked


def list_tables(
    files: Sequence[Path], title: str, asked: Mapping[str, str] | None = None, progress: Progress = silent
) -> Samples:
    """List the images that tables name.

    Parameters
    ----------
    files : sequence of Path
        CSV in UTF-8, UTF-16 or Windows-1252, separated by commas, semicolons or tabs; JSON lines; or Parquet. Columns
        are `path`, `label`, and perhaps `split`, or what else these may be called, see `COLUMNS`. A row without a label
        is unlabelled; one without a split belongs to that which its file's name tells, else to train or val by its
        content. Paths are relative to the table; see `Finder` for what is found.
    title : str
        The data set's name.
    asked : mapping, optional
        See `table_options`: names of columns, and the folder that paths are relative to instead.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        A table cannot be read, lacks a column, or names missing files, unknown splits or one path twice. Every
        kind of fault names its first few rows.
    """
    asked = asked or {}
    files = [Path(os.path.abspath(file.expanduser())) for file in files]  # noqa: PTH100
    folder = Path(os.path.abspath(Path(asked[IMAGES]).expanduser())) if IMAGES in asked else None  # noqa: PTH100
    if folder and not folder.is_dir():
        raise DataError(f"There is no folder {str(folder)!r} to find images in.")
    root = folder or files[0].parent
    rows, notes = list[Row](), list[str]()
    with progress(desc="Listing", unit="file") as bar:
        for file in files:
            finder, start = Finder(folder or file.parent), len(rows)
            above = "" if folder or file.parent == root else os.path.relpath(file.parent, root)
            for row in _rows(file, asked, notes, several=len(files) > 1):
                path = finder.find(row.path)
                rows.append(row._replace(path=os.path.join(above, path) if above else path))  # noqa: PTH118
                bar.update(1)
            _check(rows[start:], file, root, "" if folder else " Do they lie elsewhere? --image-dir names a folder.")
        _check_together(rows, files)
    classes = tuple(sorted({row.label for row in rows if row.label}))
    index = {label: number for number, label in enumerate(classes)}
    return Samples(
        name=title,
        root=root,
        paths=[row.path for row in rows],
        labels=np.array([index.get(row.label, -1) for row in rows], np.int64),
        splits=np.array([_split(row) for row in rows], "<U5"),
        classes=classes,
        notes=notes,
    )


@dataclass
class Finder:
    """Finds files that tables name in the ways people write them.

    A name is taken as it stands where there is such a file. Else spaces around it are left out, a backslash counts as
    a slash, what is not UTF-8 as Windows-1252, ``~`` as the home folder, ``file://`` as a path, and a name without an
    extension as that of the one image which has it before its extension.

    Parameters
    ----------
    folder : Path
        Where paths start.
    """

    folder: Path

    def __post_init__(self) -> None:
        self._text = os.fspath(self.folder)  # not a Path for each of a million rows
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> str:
        """Return the path of the file that is meant, or the name as it was given."""
        if not name or self._exists(name) or INSIDE.search(name):
            return name
        plain = decoded(name).strip()
        if plain.lower().startswith("file:"):
            plain = url2pathname(urlsplit(plain).path)
        turned = plain.replace("\\", "/")
        variants = (name.replace("\\", "/"), plain, turned, os.path.expanduser(turned))  # noqa: PTH111
        for variant in variants:
            if self._exists(variant):
                return variant
        return next((found for variant in variants if (found := self._by_stem(variant))), name)

    def _exists(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._text, name))  # noqa: PTH110, PTH118

    def _by_stem(self, name: str) -> str:
        folder, slash, stem = name.rpartition("/")
        if not stem or not why_no_image_name(stem):
            return ""
        if folder not in self._stems:
            self._stems[folder] = known = dict[str, list[str]]()
            try:
                names = os.listdir(os.path.join(self._text, folder))  # noqa: PTH118, PTH208
            except (OSError, ValueError):
                names = []
            for file in sorted(names):
                if not why_no_image_name(file):
                    known.setdefault(os.path.splitext(file)[0], []).append(file)  # noqa: PTH122
        found = self._stems[folder].get(stem, [])
        return folder + slash + found[0] if len(found) == 1 else ""


def _split(row: Row) -> str:
    return SPLIT_OF[row.split.lower()] if row.split else UNDECIDED if row.label else "none"


def _rows(file: Path, asked: Mapping[str, str], notes: list[str], several: bool) -> Iterator[Row]:
    header, records = read_table(file)
    names = _columns(header, asked, file)
    if other := [f"{kind} from {name!r}" for kind, name in names.items()
                 if name and kind not in asked and name.lower() != kind]:  # fmt: skip
        notes.append(f"Columns of {file.name}: {', '.join(other)}.")
    words = re.split(r"[^a-z]+", file.stem.lower()) if several else []
    usual = next((word for word in words if word in SPLIT_OF), "")
    for line, record in records:
        path, label, split = (text_of(record.get(name), name, f"{file}, line {line}") if name else ""
                              for name in names.values())  # fmt: skip
        label = label.strip()
        yield Row(line, path, label, split.strip() or (usual if label else ""))


def _columns(header: Sequence[str], asked: Mapping[str, str], file: Path) -> dict[str, str | None]:
    """Return which column holds the path, the label and the split."""
    known = {name.lower(): name for name in reversed(header)}  # of two of one name the first counts
    found: dict[str, str | None] = {}
    for kind, usual in COLUMNS.items():
        if kind in asked and asked[kind].lower() not in known:
            raise UnknownNameError(f"column of {file}", asked[kind], header)
        found[kind] = known.get(asked[kind].lower()) if kind in asked else next(
            (known[name] for name in usual if name in known), None)
    if missing := [kind for kind in ("path", "label") if found[kind] is None]:
        raise DataError(
            f"{file} has no column {' and no column '.join(map(repr, missing))}; its first line is "
            f"{', '.join(map(repr, header[:8])) or 'empty'}. Expected: path,label or path,label,split; "
            f"{' and '.join(f'--{kind}-column' for kind in missing)} would name another.{_headless(header)}"
        )
    return found


def _headless(header: Sequence[str]) -> str:
    """Return what to do where the first line is an image's."""
    if all(why_no_image_name(word) for name in header for word in name.split()):
        return ""
    return " Has it no header? Put a first line above, such as path,label, with as many names as there are columns."


def _check(rows: Sequence[Row], file: Path, root: Path, hint: str) -> None:
    if not rows:
        raise DataError(f"{file} names no image: there is nothing below its header.")
    folder = os.fspath(root)  # not a Path for each of a million rows
    faults: dict[str, Callable[[Row], bool]] = {
        "no path": lambda row: not row.path,
        f"an unknown split (known: {', '.join(SPLIT_OF)})": lambda row: row.split.lower() not in {"", *SPLIT_OF},
        "a split but no label": lambda row: bool(row.split) and not row.label,
        "a file that does not exist": lambda row: not (
            os.path.exists(os.path.join(folder, row.path)) or INSIDE.search(row.path)  # noqa: PTH110, PTH118
        ),
    }
    for what, is_faulty in faults.items():
        found = [f"{row.line} ({','.join(row[1:])!r})" for row in rows if is_faulty(row)]
        if found:
            raise DataError(f"{file} has {what} in line {first_few(found)}.{hint if 'exist' in what else ''}")


def _check_together(rows: Sequence[Row], files: Sequence[Path]) -> None:
    """Refuse a path that is there twice, however it is written: with several labels first, as the worse fault."""
    by_path: dict[str, Row] = {}
    again: list[tuple[Row, Row]] = []
    for row in rows:
        first = by_path.setdefault(os.path.normpath(row.path), row)
        if first is not row:
            again.append((first, row))
    where = first_few(files, 2)
    has = "has" if len(files) == 1 else "have"
    if several := [f"{row.path!r} ({first.label or 'none'} in line {first.line}, {row.label or 'none'} in {row.line})"
                   for first, row in again if row.label != first.label]:  # fmt: skip
        raise DataError(f"{where} {has} two labels for each of {len(several)} images: {first_few(several)}.")
    if twice := [f"{row.line} ({','.join(row[1:])!r}, as in line {first.line})" for first, row in again]:
        raise DataError(f"{where} {has} a path for the second time in line {first_few(twice)}.")
