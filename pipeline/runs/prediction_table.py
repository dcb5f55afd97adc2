"""Predictions for more images than fit in memory: row by row to a CSV or Parquet file, and on from where it stopped."""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError
from ..core.progress import Progress, silent
from ..store.disk import hold
from .classifier import ImageClassifier, Prediction
from .run import Run

FLUSHED = 256  # rows after which the file is brought up to date
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what makes a cell one, in a spreadsheet program
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
    abstained, unfamiliar : int
        Rows of which that is true.
    """

    path: Path
    images: int
    resumed: int
    failed: list[tuple[str, str]]
    abstained: int = 0
    unfamiliar: int = 0


@dataclass
class _Found:
    """What is to be told of the rows in the file: their images, which of them failed, how many are doubtful."""

    names: set[str] = field(default_factory=set)
    failed: list[tuple[str, str]] = field(default_factory=list)
    abstained: int = 0
    unfamiliar: int = 0

    def take(self, row: Sequence[Any]) -> None:
        reason, abstained, unfamiliar, _ = row[-4:]
        self.names.add(row[0])
        self.failed += [(row[0], reason)] if reason else []
        self.abstained += abstained == "true"
        self.unfamiliar += unfamiliar == "true"


def predict_to_file(
    classifier: ImageClassifier, run: Run, images: Sequence[Path | str], path: Path, *, parquet: bool = False,
    tta: bool = False, bom: bool = False, progress: Progress = silent,
) -> Streamed:  # fmt: skip
    """Classify images into a table with the columns that `columns` tells, holding only a few in memory.

    Rows go to a CSV file beside it, named after the run's content, that takes its place at the end; for Parquet,
    whose files cannot be appended to, it is turned into one. So what is there is complete, and the same call goes on
    after an interruption. Images that changed meanwhile are not looked at again. `tta` is that of
    `ImageClassifier.predict`, `bom` that of `write_csv`.

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
    how = repr((header, classifier.abstain_below, tta)).encode()
    digest = hashlib.sha256((run.path / "metrics.json").read_bytes() + how).hexdigest()[:12]
    partial = path.with_name(f".{path.name}.{digest}.partial")
    try:
        if path.is_dir() or not path.parent.is_dir():
            reason = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
            raise PipelineError(f"Cannot write {str(path)!r}: {reason}.")
        with hold(path.with_name(f".{path.name}.lock"), f"{str(path)!r}"):
            found = _taken_up(partial, header, {str(image) for image in images})
            left = [image for image in images if str(image) not in found.names]
            _append(partial, classifier, left, found, progress, tta)
            if parquet:
                write_parquet(path, header, islice(_whole_rows(partial), 1, None))
            else:
                write_csv(path, header, islice(_whole_rows(partial), 1, None), bom)
            partial.unlink()
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    return Streamed(path, len(images), len(images) - len(left), found.failed, found.abstained, found.unfamiliar)


def columns(classes: Sequence[str]) -> list[str]:
    """Return the names of a table's columns; a class that is named like another column says that it is a class.

    They are path, label, prob, one a class, reason, abstained, unfamiliar and possible; what a run cannot tell stays
    empty.
    """
    own = ("path", "label", "prob", "reason", "abstained", "unfamiliar", "possible")
    return [*own[:3], *(f"{name} (class)" if name in own else name for name in classes), *own[3:]]


def as_row(prediction: Prediction, classes: Sequence[str]) -> list[Any]:
    """Return a prediction as a row of such a table: ``true`` or ``false``, possible labels with ``|`` between them."""
    named = [prediction.probabilities.get(name) for name in classes]
    abstained = None if prediction.label is None else prediction.abstained
    yes_or_no = [None if value is None else str(value).lower() for value in (abstained, prediction.unfamiliar)]
    possible = "|".join(prediction.possible or ())
    return [prediction.path, prediction.label, prediction.prob, *named, prediction.reason, *yes_or_no, possible]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], bom: bool = False) -> None:
    """Write rows as CSV that no spreadsheet program takes for formulas.

    A text that begins like one (``=``, ``+``, ``-``, ``@``) gets an apostrophe before it. Names that are no UTF-8 come
    out as the bytes that they are on disk.

    Parameters
    ----------
    bom : bool
        Begin with a byte-order mark, by which spreadsheet programs tell UTF-8.
    """
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\ufeff" if bom else "")
        writer = csv.writer(file)
        writer.writerows(map(_harmless, row) for row in itertools.chain([header], rows))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def write_parquet(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as Parquet, a few thousand at a time: texts, truths and 64-bit numbers, null where there is none.

    Bytes of a path that are no UTF-8 become backslashes and digits: a Parquet string can hold nothing else.
    """
    pa, parquet = _pyarrow()
    kinds: list[tuple[Any, Callable[[Any], Any]]] = [(pa.float64(), _number)] * len(header)
    kinds[:2], kinds[-4:] = [(pa.string(), _text)] * 2, [(pa.string(), _text), *[(pa.bool_(), _truth)] * 2,
                                                         (pa.string(), _text)]  # fmt: skip
    schema = pa.schema([(_text(name), kind) for name, (kind, _) in zip(header, kinds, strict=True)])
    fresh, rest = path.with_name(f".{path.name}.new"), iter(rows)
    with parquet.ParquetWriter(fresh, schema) as writer:
        while group := list(islice(rest, GROUP)):
            arrays = [pa.array(map(read, cells), kind)
                      for (kind, read), cells in zip(kinds, zip(*group, strict=True), strict=True)]  # fmt: skip
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    fresh.replace(path)


def _text(cell: str | None) -> str | None:
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if cell else None


def _number(cell: Any) -> float | None:
    return float(cell) if cell not in (None, "") else None


def _truth(cell: str | None) -> bool | None:
    return cell == "true" if cell else None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PipelineError(PARQUET) from error
    return pyarrow, pyarrow.parquet


def _append(
    path: Path, classifier: ImageClassifier, images: Sequence[Path | str], found: _Found, progress: Progress,
    tta: bool,
) -> None:
    """Classify images into rows at the end of the file, and count them as found."""
    with (
        path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file,
        progress(total=len(images), desc="predict", unit="image") as bar,
    ):
        writer = csv.writer(file)
        for number, prediction in enumerate(classifier.stream(images, tta=tta), 1):
            row = as_row(prediction, classifier.classes)
            writer.writerow(row)
            found.take(row)
            if number % FLUSHED == 0:
                file.flush()
            bar.update(1)
        file.flush()
        os.fsync(file.fileno())


def _taken_up(path: Path, header: list[str], wanted: set[str]) -> _Found:
    """Begin the file with what an interrupted call left of it, and tell what that is."""
    found, fresh = _Found(), path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer, rows = csv.writer(file), _whole_rows(path)
        writer.writerow(header)
        for row in rows if next(rows, None) == header else ():
            if len(row) == len(header) and row[0] in wanted:
                writer.writerow(row)
                found.take(row)
    fresh.replace(path)
    return found


def _whole_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a file, without the last one where it was cut off."""
    if not path.exists():
        return
    with path.open(newline="\n", encoding="utf-8", errors="surrogateescape") as file:
        yield from csv.reader(line for line in file if line.endswith("\n"))
