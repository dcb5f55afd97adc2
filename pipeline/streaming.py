"""Predictions for more images than fit in memory: row by row to a CSV file, and on from where it stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .classifier import ImageClassifier, Prediction
from .errors import PipelineError
from .progress import Progress, silent
from .runs import Run

FLUSHED = 256  # rows after which the file is brought up to date


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


def predict_to_csv(
    classifier: ImageClassifier, run: Run, images: Sequence[Path], path: Path, progress: Progress = silent
) -> Streamed:
    """Classify images into a CSV file ``path,label,prob,<classes>,reason``, holding only a few in memory.

    Rows go to a file beside it, named after the run's content, that takes its place at the end: what is there is
    complete, and the same call goes on after an interruption. Images that changed meanwhile are not looked at again.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    header = ["path", "label", "prob", *classifier.classes, "reason"]
    digest = hashlib.sha256((run.path / "metrics.json").read_bytes() + repr(header).encode()).hexdigest()[:12]
    partial = path.with_name(f".{path.name}.{digest}.partial")
    wanted = {str(image) for image in images}
    try:
        done = [row for row in _whole_rows(partial, header) if row[0] in wanted]
        _write(partial, [header, *done])
        known = {row[0] for row in done}
        failed = [(row[0], row[-1]) for row in done if row[-1]]
        failed += _append(partial, classifier, [image for image in images if str(image) not in known], progress)
        partial.replace(path)
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    return Streamed(path, len(images), len(done), failed)


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
            writer.writerow(_row(prediction, classifier.classes))
            if prediction.reason:
                failed.append((prediction.path, prediction.reason))
            if number % FLUSHED == 0:
                file.flush()
            bar.update(1)
        file.flush()
        os.fsync(file.fileno())
    return failed


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
    fresh.replace(path)


def _row(prediction: Prediction, classes: Sequence[str]) -> list[object]:
    named = [prediction.probabilities.get(name) for name in classes]
    return [prediction.path, prediction.label, prediction.prob, *named, prediction.reason]


def _whole_rows(path: Path, header: list[str]) -> list[list[str]]:
    """Return the rows of an interrupted file, without the last one where it was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    text = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if len(row) == len(header)]
    return rows[1:] if rows[:1] == [header] else []
