"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table of a title, names of columns and values; whatever they hold is escaped."""
    names = "".join(f"<th>{_text(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><caption>{_text(title)}</caption><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return " to ".join(map(_text, value))
    # names of files may hold bytes that are no text
    return escape("" if value is None else str(value).encode(errors="backslashreplace").decode())
