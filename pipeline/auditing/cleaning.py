"""The list of a data set's images without what an audit found: a table that every command takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import PipelineError
from ..data import place
from ..data.files import is_url
from ..store import FeatureCache
from ..store.disk import DISK
from .findings import Audit, Group

SURE = 0.9  # a label is changed where the likelier one has this probability at least, by images that are not it
HEADER = ("path", "label", "split", "change")
_RANK = {"train": 0, "val": 1, "test": 2, "none": 3}


class Line(NamedTuple):
    """An image of the list: where it was, and why that changed."""

    path: str
    label: str
    split: str
    change: str = ""


@dataclass(frozen=True)
class Cleaned:
    """What was written.

    Attributes
    ----------
    path, dropped_path : str
        The list, and the list of what is not in it any more; the latter is empty where nothing is.
    kept, dropped, moved, relabelled : int
        Images.
    """

    path: str
    dropped_path: str
    kept: int
    dropped: int
    moved: int
    relabelled: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def clean(audit: Audit, cache: FeatureCache) -> tuple[list[Line], list[Line]]:
    """Return the images that stay, as they should be, and those that do not, as they were.

    Of copies one stays, in the first of train, val and test that has one; none where they have several labels. Images
    that are nearly the same go to the first split that has one of them. A label of train that is nearly surely another
    is changed. Labels of val and test are left alone: to change them by what a model says would flatter models.
    """
    names = [*cache.classes, ""]
    lines = [Line(path, names[label], "" if split == "none" and label < 0 else str(split))
             for path, label, split in zip(cache.paths, cache.labels.tolist(), cache.splits.tolist(), strict=True)]
    dropped: dict[int, str] = {}
    for group in audit.groups:
        _settle(group, cache, lines, dropped)
    for row, likelier, _, sure in audit.label_errors:
        if sure >= SURE and lines[row].split == "train":
            line = lines[row]
            change = f"{line.change} relabelled, was {line.label}".strip()
            lines[row] = line._replace(label=likelier, change=change)
    stay = [line for row, line in enumerate(lines) if row not in dropped]
    gone = [lines[row]._replace(split=str(cache.splits[row]), change=why) for row, why in sorted(dropped.items())]
    return stay, gone


def _settle(group: Group, cache: FeatureCache, lines: list[Line], dropped: dict[int, str]) -> None:
    rows = sorted(group.rows, key=lambda row: (_RANK.get(str(cache.splits[row]), 3), row))
    by_content: dict[bytes, list[int]] = {}
    for row in rows:
        by_content.setdefault(cache.digests[row].tobytes(), []).append(row)
    for copies in by_content.values():
        contradict = len({int(cache.labels[row]) for row in copies}) > 1
        for row in copies if contradict else copies[1:]:
            dropped[row] = "copies have several labels" if contradict else f"a copy of {cache.paths[copies[0]]}"
    left = [row for row in rows if row not in dropped and lines[row].split in _RANK]
    for row in left[1:]:
        if (first := lines[left[0]]).split != lines[row].split:
            was = f"moved from {lines[row].split}, nearly the same as {first.path}"
            lines[row] = lines[row]._replace(split=first.split, change=was)


def write_clean(audit: Audit, cache: FeatureCache, file: str | Path) -> Cleaned:
    """Write the list as CSV, and beside it one of the images that were dropped, each with its reason.

    Raises
    ------
    PipelineError
        If the images are behind a URL, which a table cannot name, or the file cannot be written, or is somebody's.
    """
    file, root = Path(file), cache.meta["root"]
    if file.exists() and not _is_ours(file):
        raise PipelineError(f"{str(file)!r} is there already, and no list of this command. Choose another name.")
    if is_url(root):
        raise PipelineError(f"The images are behind {root}, and a table names files of this machine only.")
    stay, gone = clean(audit, cache)
    beside = file.with_name(f"{file.stem}-dropped{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, stay, root)
        if gone:
            _write(beside, gone, root)
        else:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise PipelineError(f"Cannot write {str(file)!r}: {error.strerror or error}.") from error
    changes = [line.change for line in stay]
    return Cleaned(str(file), str(beside) if gone else "", len(stay), len(gone),
                   sum("moved" in change for change in changes), sum("relabelled" in change for change in changes))


def _is_ours(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.readline().decode(errors="replace").strip() == ",".join(HEADER)


def _write(file: Path, lines: Sequence[Line], root: str) -> None:
    start = os.path.relpath(place(root).absolute(), file.parent.absolute())  # type: ignore[union-attr]
    rows = [(os.path.normpath(os.path.join(start, line.path)), *line[1:]) for line in lines]  # noqa: PTH118
    DISK.publish_csv(file, [HEADER, *rows])
