"""Where predictions go besides the terminal: a CSV file, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PipelineError
from .printing import print_notes, progress_bars

MOST = 60  # images of a picture


def predict_to_file(classifier: Any, run: Any, paths: Sequence[Path], path: Path) -> None:
    """Stream predictions to a CSV file, and say what came of it."""
    from ..streaming import predict_to_csv

    done = predict_to_csv(classifier, run, paths, path, progress_bars())
    print_notes(classifier.notes)
    if done.resumed:
        print_notes([f"Went on where an interrupted call stopped: {done.resumed} images were there."])
    print(f"{done.path}: {done.images - len(done.failed)} images classified, {len(done.failed)} unreadable")
    print_notes(f"no prediction for {path!r}: {reason}" for path, reason in done.failed[:5])
    if len(done.failed) > 5:
        print_notes([f"… and {len(done.failed) - 5} more"])
    if len(done.failed) == done.images:
        raise PipelineError(f"None of the {done.images} files is a readable image.")


def save_grid(found: Sequence[Any], path: Path) -> None:
    """Draw images with what was predicted of them."""
    from ..thumbnails import contact_sheet, save

    shown = found[:MOST]
    captions = [(each.path, f"{each.label} {each.prob:.2f}" if each.label else "no image") for each in shown]
    title = f"{len(shown)} of {len(found)} images" if len(found) > MOST else ""
    save(contact_sheet(Path(), captions, title), path)
    print_notes([f"look at {path}"])
