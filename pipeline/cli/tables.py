"""Tables as text, of names in any script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .printing import print_notes, printable

WIDTH = 100  # columns of the terminal that a table takes at most, where some of it can be left out
LEAST = 12  # of a column of the table that is made narrower


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], narrower: Sequence[str] = ()) -> None:
    """Print a table, numbers to the right.

    Where `WIDTH` is too little, the columns `narrower` give way one after the other: what all texts of a column begin
    with is left out and said below, then the middle of what is still too long.
    """
    columns, notes = [[printable(row[at]) for row in rows] for at in range(len(header))], []
    for name in (name for name in narrower if name in header):
        at = list(header).index(name)
        if _excess(header, columns) > 0 and (start := _start(columns[at])):
            columns[at] = [f"…{cell.removeprefix(start)}" for cell in columns[at]]
            notes.append(f"… is {start}")
        if (excess := _excess(header, columns)) > 0:
            width = max(max(map(columns_of, columns[at])) - excess, LEAST, len(name))
            if any(columns_of(cell) > width for cell in columns[at]):
                columns[at] = [_shortened(cell, width) for cell in columns[at]]
                notes.append("… in the middle is what had no room; --json has it all")
    widths = _widths(header, columns)
    numeric = [bool(rows) and all(map(_is_number, column)) for column in columns]
    for row in [header, *zip(*columns, strict=True)]:
        padded = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            space = " " * (width - columns_of(cell))
            padded.append(space + cell if right else cell + space)
        print("  ".join(padded).rstrip())
    print_notes(dict.fromkeys(notes))


def fitting(line: str) -> str:
    """Return a line of at most `WIDTH` columns, without its middle where it is longer."""
    return _shortened(printable(line), WIDTH)


def columns_of(text: str) -> int:
    """Return the columns that a text takes in a terminal: two of a Chinese character, none of an accent by itself."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    width = wcswidth(text)
    return len(text) if width < 0 else width


def _widths(header: Sequence[str], columns: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(columns_of, (name, *column))) for name, column in zip(header, columns, strict=True)]


def _excess(header: Sequence[str], columns: Sequence[Sequence[str]]) -> int:
    return sum(_widths(header, columns)) + 2 * (len(columns) - 1) - WIDTH


def _start(cells: Sequence[str]) -> str:
    """Return what several texts begin with, up to the last hyphen; empty where that is not worth a note."""
    alike = next((at for at, letters in enumerate(zip(*cells, strict=False)) if len(set(letters)) > 1), 0)
    start = cells[0][: cells[0].rfind("-", 0, alike) + 1]
    return start if len(start) >= LEAST else ""


def _shortened(text: str, width: int) -> str:
    if columns_of(text) <= width:
        return text
    start, end = text[: len(text) // 2], text[len(text) // 2 :]
    while columns_of(start) + 1 + columns_of(end) > width:
        start, end = (start[:-1], end) if columns_of(start) > columns_of(end) else (start, end[1:])
    return f"{start}…{end}"


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(",", "").replace(".", "", 1).removesuffix(" M").isdigit() or not text
