"""Predictions for more images than fit in memory: row by row to a CSV or Parquet file, and on from where it stopped."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .classifier import ImageClassifier, Prediction
from .errors import PipelineError
from .progress import Progress, silent
from .runs import Run
from .store.lock import hold

FLUSHED = 256  # rows after which the file is brought up to date
GROUP = 10_000  # rows of a Parquet file that are in memory at once
PARQUET = "Parquet files need pyarrow: pip install pyarrow. A CSV file (--csv) needs nothing."


@dataclass(frozen=True)
class Streamed:
    """What was written.

    Attributes
    ----------
    path : Path
    images, resumed : int
        Rows in the file; those of them that an earlier, interrupted call left.
    failed : list of (path, reason)
        Images that gave no prediction.
    """

    path: Path
    images: int
    resumed: int
    failed: list[tuple[str, str]]


@dataclass
class _Found:
    """What an interrupted call left: the images that it was done with, and which of them failed."""

    names: set[str] = field(default_factory=set)
    failed: list[tuple[str, str]] = field(default_factory=list)


def predict_to_file(
    classifier: ImageClassifier, run: Run, images: Sequence[Path], path: Path, *, parquet: bool = False,
    progress: Progress = silent,
) -> Streamed:  # fmt: skip
    """Classify images into a table of path, label, prob, a column a class, and reason, holding only a few in memory.

    Rows go to a CSV file beside it, named after the run's content, that takes its place at the end; for Parquet,
    whose files cannot be appended to, it is turned into one. So what is there is complete, and the same call goes on
    after an interruption. Images that changed meanwhile are not looked at again.

    Raises
    ------
    BusyError
        If another process is writing this file.
    PipelineError
        If the file cannot be written, or pyarrow is missing.
    """
    if parquet:
        _pyarrow()
    header = columns(classifier.classes)
    digest = hashlib.sha256((run.path / "metrics.json").read_bytes() + repr(header).encode()).hexdigest()[:12]
    partial = path.with_name(f".{path.name}.{digest}.partial")
    try:
        if path.is_dir() or not path.parent.is_dir():
            reason = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
            raise PipelineError(f"Cannot write {str(path)!r}: {reason}.")
        with hold(path.with_name(f".{path.name}.lock"), f"{str(path)!r}"):
            found = _taken_up(partial, header, {str(image) for image in images})
            left = [image for image in images if str(image) not in found.names]
            failed = found.failed + _append(partial, classifier, left, progress)
            if parquet:
                write_parquet(path, header, islice(_whole_rows(partial), 1, None))
                partial.unlink()
            else:
                partial.replace(path)
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    return Streamed(path, len(images), len(images) - len(left), failed)


def columns(classes: Sequence[str]) -> list[str]:
    """Return the names of a table's columns; a class that is named like another column says that it is a class."""
    own = ("path", "label", "prob", "reason")
    return [*own[:3], *(f"{name} (class)" if name in own else name for name in classes), own[3]]


def as_row(prediction: Prediction, classes: Sequence[str]) -> list[Any]:
    """Return a prediction as a row of such a table."""
    named = [prediction.probabilities.get(name) for name in classes]
    return [prediction.path, prediction.label, prediction.prob, *named, prediction.reason]


def write_parquet(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as Parquet, a few thousand at a time: texts and 64-bit numbers, null where there is none.

    Bytes of a path that are no UTF-8 become backslashes and digits: a Parquet string can hold nothing else.
    """
    pa, parquet = _pyarrow()
    texts = (0, 1, len(header) - 1)
    fields = [(_text(name), pa.string() if place in texts else pa.float64()) for place, name in enumerate(header)]
    schema, fresh, rest = pa.schema(fields), path.with_name(f".{path.name}.new"), iter(rows)
    with parquet.ParquetWriter(fresh, schema) as writer:
        while group := list(islice(rest, GROUP)):
            arrays = [pa.array([_text(cell) if place in texts else _number(cell) for cell in cells], schema[place].type)
                      for place, cells in enumerate(zip(*group, strict=True))]  # fmt: skip
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    fresh.replace(path)


def _text(cell: str | None) -> str | None:
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if cell else None


def _number(cell: Any) -> float | None:
    return float(cell) if cell not in (None, "") else None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PipelineError(PARQUET) from error
    return pyarrow, pyarrow.parquet


def _append(
    path: Path, classifier: ImageClassifier, images: Sequence[Path], progress: Progress
) -> list[tuple[str, str]]:
    """Classify images into rows at the end of the file; return those that failed."""
    failed = []
    with (
        path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file,
        progress(total=len(images), desc="predict", unit="image") as bar,
    ):
        writer = csv.writer(file)
        for number, prediction in enumerate(classifier.stream(images), 1):
            writer.writerow(as_row(prediction, classifier.classes))
            if prediction.reason:
                failed.append((prediction.path, prediction.reason))
            if number % FLUSHED == 0:
                file.flush()
            bar.update(1)
        file.flush()
        os.fsync(file.fileno())
    return failed


def _taken_up(path: Path, header: list[str], wanted: set[str]) -> _Found:
    """Begin the file with what an interrupted call left of it, and tell what that is."""
    found, fresh = _Found(), path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer, rows = csv.writer(file), _whole_rows(path)
        writer.writerow(header)
        for row in rows if next(rows, None) == header else ():
            if len(row) == len(header) and row[0] in wanted:
                writer.writerow(row)
                found.names.add(row[0])
                found.failed += [(row[0], row[-1])] if row[-1] else []
    fresh.replace(path)
    return found


def _whole_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a file, without the last one where it was cut off."""
    if not path.exists():
        return
    with path.open(newline="\n", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.reader(line for line in file if line.endswith("\n"))
