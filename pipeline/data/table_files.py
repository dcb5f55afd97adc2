"""Files that hold a table, read as text row by row: CSV in every dialect and encoding, JSON lines, Parquet."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from .sources.parquet import PYARROW
from .sources.parquet import holds_images as parquet_holds_images

TEXT, LINES, PARQUET = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson"), ".parquet"
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
Record = tuple[int, dict[str, Any]]  # number of the line or row, and what each column holds


def may_be_table(name: str | Path) -> bool:
    """Return whether a file of this name may be a table of paths."""
    return Path(name).suffix.lower() in (*TEXT, *LINES, PARQUET)


def is_table(file: Path) -> bool:
    """Return whether a file names images; a Parquet file may hold them instead."""
    suffix = file.suffix.lower()
    return suffix in (*TEXT, *LINES) or (suffix == PARQUET and not parquet_holds_images(file))


def read_table(file: Path) -> tuple[list[str], Iterator[Record]]:
    """Return a table's columns and its rows; text that is in no UTF comes as `os.fsdecode` gives it.

    Raises
    ------
    DataError
        It cannot be read, or a row does not fit the header; perhaps only when that row is asked for.
    """
    suffix = file.suffix.lower()
    rows = _parquet(file) if suffix == PARQUET else _lines(file) if suffix in LINES else _csv(file)
    return next(rows), rows


# each of these yields the columns first, then a `Record` a row


def _csv(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as start:
            marked = start.read(2) in _MARKS
        # spreadsheet programs begin a file with a mark, and write "Unicode text" as UTF-16
        encoding, errors = ("utf-16", "strict") if marked else ("utf-8-sig", "surrogateescape")
        with file.open(encoding=encoding, errors=errors, newline="") as stream:
            separator = max(",;\t", key=stream.readline().count)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            yield header
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(f"{file}, line {reader.line_num}: {len(fields)} values where the header has "
                                    f"{len(header)}: {', '.join(fields[:3])}. A name that holds the separator needs "
                                    "quotes.")
                yield reader.line_num, dict(zip(header, fields, strict=True))
    except (OSError, csv.Error, UnicodeError) as error:
        raise DataError(f"Cannot read {file}: {error}.") from error


def _lines(file: Path) -> Iterator[Any]:
    first = True
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{file}, line {number}: expected an object such as {{\"path\": …, \"label\": …}}.")
                if first:
                    yield list(row)
                    first = False
                yield number, row
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {file}: {error}.") from error
    if first:
        yield []


def text_of(value: Any, name: str, where: str) -> str:
    """Return what a row holds in a column as text; empty where it is missing.

    Raises
    ------
    DataError
        It is several values, or none that can be a name.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # of whole numbers some of which are missing
    if isinstance(value, (str, int, float)):
        return str(value)
    raise DataError(f"{where}: {name!r} holds a {type(value).__name__}, where a text or number is expected.")


def _parquet(file: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(PYARROW) from error
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            yield names
            number = 0
            for batch in table.iter_batches(columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ArrowException) as error:
        raise DataError(f"Cannot read {file}: {error}.") from error
