"""Where predictions go besides the terminal: a CSV or Parquet file, a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError
from .printing import print_notes, progress_bars
from .tables import print_table

MOST = 60  # images of a picture


def table_of(options: argparse.Namespace) -> Path | None:
    """Return the file that predictions were asked to go to.

    Raises
    ------
    PipelineError
        If there are two, one cannot hold what was asked for, or CSV would get the name of a Parquet file.
    """
    if options.csv and options.parquet:
        raise PipelineError("--csv and --parquet are two files: ask for one of them.")
    if options.csv and options.csv.suffix == ".parquet":
        raise PipelineError(f"--csv would write CSV into {str(options.csv)!r}: use --parquet for a Parquet file.")
    if (options.parquet or options.csv) and options.scores:
        raise PipelineError("--scores are printed, or told by --json; tables hold probabilities. Ask for one.")
    return options.parquet or options.csv


def stream_to_table(
    classifier: Any, run: Any, paths: Sequence[Path | str], path: Path, options: argparse.Namespace
) -> None:  # fmt: skip
    """Stream predictions to a file, and say what came of it."""
    from ..runs.prediction_table import predict_to_file

    done = predict_to_file(classifier, run, paths, path, parquet=bool(options.parquet), tta=options.tta,
                           bom=options.bom, progress=progress_bars())
    print_notes(classifier.notes)
    _note_doubts(classifier, run, done.abstained, done.unfamiliar, done.images)
    if done.resumed:
        print_notes([f"Went on where an interrupted call stopped: {done.resumed} images were there."])
    print(f"{done.path}: {done.images - len(done.failed)} images classified, {len(done.failed)} unreadable")
    print_notes(f"no prediction for {path!r}: {reason}" for path, reason in done.failed[:5])
    if len(done.failed) > 5:
        print_notes([f"… and {len(done.failed) - 5} more"])
    if len(done.failed) == done.images:
        raise PipelineError(f"None of the {done.images} files is a readable image.")


def save_table(found: Sequence[Any], classes: Sequence[str], path: Path, options: argparse.Namespace) -> None:
    """Write predictions that are in memory already."""
    from ..runs.prediction_table import as_row, columns, write_csv, write_parquet

    write = write_parquet if options.parquet else partial(write_csv, bom=options.bom)
    try:
        write(path, columns(classes), (as_row(each, classes) for each in found))
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error


def save_grid(found: Sequence[Any], path: Path) -> None:
    """Draw images with what was predicted of them."""
    from ..reports.pictures import contact_sheet, save

    shown = found[:MOST]
    captions = [(each.path, f"{_named(each)} {each.prob:.2f}" if each.label else "no image") for each in shown]
    title = f"{len(shown)} of {len(found)} images" if len(found) > MOST else ""
    save(contact_sheet(None, captions, title), path)
    print_notes([f"look at {path}"])


def likeliest(prediction: Any, count: int) -> list[tuple[str, float]]:
    """Return an image's likeliest labels with their probabilities."""
    return sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:count]


def print_predictions(found: Sequence[Any], topk: int = 1) -> None:
    """Print a table of labels; an answer that is none, and what else is possible or likely, in words."""
    header, rows = ["path", "label", "prob"], []
    for each in found:
        if each.label:
            others = f"or {', '.join(each.possible[1:])}" if each.possible and each.possible[1:] else ""
            if topk > 1:
                others = ", ".join(f"{label} {prob:.3f}" for label, prob in likeliest(each, topk)[1:])
            rows.append((each.path, _named(each), f"{each.prob:.3f}", others,
                         "unlike training" if each.unfamiliar else ""))
    remarks = [column for column in (3, 4) if any(row[column] for row in rows)]
    print_table([*header, *("" for _ in remarks)], [(*row[:3], *(row[column] for column in remarks)) for row in rows])


def print_scores(found: Sequence[Any]) -> None:
    """Print a table of every class's raw score and probability, the likeliest first."""
    print()
    rows = [(each.path, name, f"{each.scores[name]:.4f}", f"{each.probabilities[name]:.4f}")
            for each in found if each.label for name in sorted(each.scores, key=each.probabilities.get, reverse=True)]
    print_table(("path", "class", "score", "prob"), rows)


def print_doubts(classifier: Any, run: Any, found: Sequence[Any]) -> None:
    """Say how many predictions are no answers, or of images unlike any in training."""
    _note_doubts(classifier, run, sum(each.abstained for each in found), sum(bool(each.unfamiliar) for each in found),
                 len(found))


def _note_doubts(classifier: Any, run: Any, abstained: int, unfamiliar: int, images: int) -> None:
    if classifier.abstain_below and not classifier.calibrated:
        print_notes([f"{run.name} is not calibrated, so --abstain-below goes by probabilities as they are; "
                     "`train-head --calibrate` makes them honest."])
    if classifier.abstain_below:
        print_notes([f"{abstained} of {images} images abstained from: no label has {classifier.abstain_below:g}."])
    if unfamiliar:
        print_notes([f"{unfamiliar} of {images} images are unlike anything in training, whatever their label."])


def as_values(prediction: Any, scores: bool = False, topk: int = 1) -> dict[str, Any]:
    """Return a prediction as JSON values, with raw scores and further labels where they were asked for."""
    names = ("path", "label", "prob", "abstained", "unfamiliar", "possible", *(["scores"] if scores else []))
    top = [{"label": label, "prob": prob} for label, prob in likeliest(prediction, topk)] if topk > 1 else None
    return {**{name: getattr(prediction, name) for name in names}, **({"top": top} if top else {})}


def _named(prediction: Any) -> str:
    return f"don't know ({prediction.label}?)" if prediction.abstained else prediction.label
