"""Where predictions go besides the terminal: a CSV or Parquet file, a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PipelineError
from .printing import print_notes, progress_bars, write_csv

MOST = 60  # images of a picture


def table_of(options: argparse.Namespace) -> Path | None:
    """Return the file that predictions were asked to go to.

    Raises
    ------
    PipelineError
        If there are two, or a CSV file is asked for under the name of a Parquet file.
    """
    if options.csv and options.parquet:
        raise PipelineError("--csv and --parquet are two files: ask for one of them.")
    if options.csv and options.csv.suffix == ".parquet":
        raise PipelineError(f"--csv would write CSV into {str(options.csv)!r}: use --parquet for a Parquet file.")
    return options.parquet or options.csv


def stream_to_table(classifier: Any, run: Any, paths: Sequence[Path], path: Path, parquet: bool) -> None:
    """Stream predictions to a file, and say what came of it."""
    from ..streaming import predict_to_file

    done = predict_to_file(classifier, run, paths, path, parquet=parquet, progress=progress_bars())
    print_notes(classifier.notes)
    if done.resumed:
        print_notes([f"Went on where an interrupted call stopped: {done.resumed} images were there."])
    print(f"{done.path}: {done.images - len(done.failed)} images classified, {len(done.failed)} unreadable")
    print_notes(f"no prediction for {path!r}: {reason}" for path, reason in done.failed[:5])
    if len(done.failed) > 5:
        print_notes([f"… and {len(done.failed) - 5} more"])
    if len(done.failed) == done.images:
        raise PipelineError(f"None of the {done.images} files is a readable image.")


def save_table(found: Sequence[Any], classes: Sequence[str], path: Path, parquet: bool) -> None:
    """Write predictions that are in memory already."""
    from ..streaming import as_row, columns, write_parquet

    write = write_parquet if parquet else write_csv
    try:
        write(path, columns(classes), (as_row(each, classes) for each in found))
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error


def save_grid(found: Sequence[Any], path: Path) -> None:
    """Draw images with what was predicted of them."""
    from ..thumbnails import contact_sheet, save

    shown = found[:MOST]
    captions = [(each.path, f"{each.label} {each.prob:.2f}" if each.label else "no image") for each in shown]
    title = f"{len(shown)} of {len(found)} images" if len(found) > MOST else ""
    save(contact_sheet(Path(), captions, title), path)
    print_notes([f"look at {path}"])
