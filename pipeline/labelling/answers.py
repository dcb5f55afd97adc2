"""Answers on disk: a table that every command takes, complete before anybody is told that an answer is kept."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from ..core.errors import DataError
from ..store.disk import DISK, hold

HEADER = ("path", "label", "split", "chosen", "when")
RANDOM, ASKED, GIVEN = "random", "asked", "given"
SKIPPED, OTHER = "skipped", "other"
HELD_OUT = "val"


@dataclass(frozen=True)
class Answer:
    """What was said of an image.

    Attributes
    ----------
    path : str
        As the cache names it.
    label : str
        Empty of an image that was skipped, or is of no class.
    chosen : str
        How the image came to be asked for: ``random``, ``asked`` (by the strategy), ``given`` (labelled before); or why
        it has no label: ``skipped``, ``other``.
    when : str
        In UTC, to the second.
    """

    path: str
    label: str
    chosen: str
    when: str = ""

    @property
    def split(self) -> str:
        """The images drawn at random are what a run is scored on; it is trained on all others."""
        return "" if not self.label else HELD_OUT if self.chosen == RANDOM else "train"


class AnswerFile:
    """The table of answers; a context manager that one process holds at a time.

    An answer to a new image is appended; one that changes an earlier answer writes the table anew, beside the old one,
    which it then replaces. So a kill at any moment leaves all answers that were told to be kept, each once; a line that
    was cut off is dropped.

    Parameters
    ----------
    path : Path
    root : Path
        Where the paths of images start; those in the table are relative to its own folder.

    Raises
    ------
    DataError
        If the file is no such table, or cannot be read.
    """

    def __init__(self, path: Path, root: Path):
        self.path, self._root = path, root
        self._answers: dict[str, Answer] = {}

    @contextmanager
    def held(self) -> Iterator[AnswerFile]:
        """Read the file and hold it for the length of a `with` block.

        Raises
        ------
        BusyError
            If another process has it.
        """
        with hold(self.path.with_name(f".{self.path.name}.lock"), f"the answers {self.path}"):
            self._read()
            yield self

    @property
    def answers(self) -> list[Answer]:
        """All answers, in the order in which they were given."""
        return list(self._answers.values())

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep answers. Once this returns they are on disk.

        Raises
        ------
        OSError
            If the disk is full, say; then none of them is kept, and the file is as it was.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stamped = [Answer(one.path, one.label, one.chosen, one.when or now) for one in answers]
        if all(one.path not in self._answers for one in stamped) and self.path.exists():
            self._append(stamped)
        else:
            fresh = {**self._answers, **{one.path: one for one in stamped}}
            self._replace(fresh.values())
        self._answers |= {one.path: one for one in stamped}

    def put(self, answers: Mapping[str, Answer | None]) -> None:
        """Set the answers to some images as they are given; None forgets one."""
        fresh = {path: one for path, one in {**self._answers, **answers}.items() if one is not None}
        self._replace(fresh.values())
        self._answers = fresh

    def _append(self, answers: Sequence[Answer]) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(map(self._row, answers))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)
            raise

    def _replace(self, answers: Iterable[Answer]) -> None:
        DISK.publish_csv(self.path, [HEADER, *map(self._row, answers)])

    def _row(self, one: Answer) -> tuple[str, ...]:
        return os.path.relpath(self._root / one.path, self.path.parent), one.label, one.split, one.chosen, one.when

    def _read(self) -> None:
        self._answers = {}
        if not self.path.exists():
            return
        try:
            content = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror}.") from error
        whole = content[: content.rfind("\n") + 1]  # what follows was cut off
        rows = list(csv.reader(StringIO(whole, newline="")))  # names of files may hold line ends
        if not rows or tuple(rows[0]) != HEADER:
            raise DataError(f"{self.path} is there already, and is no table of answers: its first line is not "
                            f"{','.join(HEADER)}. Choose another with --labels.")
        for row in rows[1:]:
            if len(row) == len(HEADER):
                path = os.path.relpath(os.path.normpath(self.path.parent / row[0]), self._root)
                self._answers[path] = Answer(path, row[1], row[3], row[4])
        if len(whole) < len(content):
            self._replace(self._answers.values())
