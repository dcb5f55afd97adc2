"""Contact sheets: the images behind each finding, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data import place
from ..errors import PipelineError
from ..store import FeatureCache
from ..thumbnails import contact_sheet
from .findings import Audit

MOST = 60  # images on a sheet


def write_sheets(audit: Audit, cache: FeatureCache, folder: Path) -> list[Path]:
    """Write a PNG for each kind of finding that has images.

    Returns
    -------
    list of Path
        ``duplicates.png``, ``leaks.png``, ``label-errors.png``, ``outliers.png``, ``classes.png``, ``skipped.png``:
        those that there is something to show of.

    Raises
    ------
    PipelineError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(name, captions, cache, folder) for name, captions in _pages(audit, cache).items() if captions]
    except OSError as error:
        raise PipelineError(f"Cannot write contact sheets to {str(folder)!r}: {error.strerror or error}.") from error


def _pages(audit: Audit, cache: FeatureCache) -> dict[str, list[tuple[str, str]]]:
    """Return for each sheet its images and what is said of them."""

    def about(row: int) -> str:
        label = cache.labels[row]
        return f"{cache.splits[row]} · {cache.classes[label] if label >= 0 else 'unlabelled'}"

    leaked = set(audit.leaked.tolist())

    def members(chosen: Sequence) -> list[tuple[str, str]]:
        return [
            (cache.paths[row], f"#{number} {'copy' if group.exact else f'{group.similarity:.3f}'} · {about(row)}")
            for number, group in enumerate(chosen, 1) for row in group.rows
        ]

    return {
        "duplicates": members(audit.groups),
        "leaks": members([group for group in audit.groups if leaked & set(group.rows)]),
        "label-errors": [(cache.paths[row], f"{about(row)}, rather {name} ({other:.2f})")
                         for row, name, _, other in audit.label_errors],
        "outliers": [(cache.paths[row], f"{about(row)} · {far:.2f}") for row, far, _ in audit.outliers],
        "classes": [(cache.paths[row], about(row)) for row in _examples(cache)],
        "skipped": list(audit.skipped),
    }  # fmt: skip


def _examples(cache: FeatureCache, each: int = 6) -> list[int]:
    """Return some images of every class, the first ones of train."""
    found: list[int] = []
    for label in range(len(cache.classes)):
        found += [int(row) for row in cache.indices("train") if cache.labels[row] == label][:each]
    return found


def _write(name: str, captions: list[tuple[str, str]], cache: FeatureCache, folder: Path) -> Path:
    left_out = len(captions) - MOST
    title = f"{name.replace('-', ' ')}: {len(captions)}" + (f", the first {MOST}" if left_out > 0 else "")
    path = folder / f"{name}.png"
    contact_sheet(place(cache.meta["root"]), captions[:MOST], title).save(path)
    return path
