"""What makes a features row the same row: the spec, its digest and its differences from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FORMAT_VERSION = 1
"""Version of the cache file's layout; files of another version are not read."""

ABSENT = "(absent)"
"""What `Spec.differences` shows for a field that one side does not have."""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Spec:
    """Everything that can change a features row, as plain JSON values.

    Two rows are interchangeable exactly when their specs and the digests of their image files are
    equal. Batch size, workers, device, file names and labels do not belong in it.

    Parameters
    ----------
    fields : mapping
        Names to JSON values (nested mappings, lists, strings, numbers, booleans, None): weights
        digest, layer, transform, precision, views, decode rules, ….

    Raises
    ------
    TypeError, ValueError
        If a value is not JSON: such a spec could not be compared later.
    """

    def __init__(self, fields: Mapping[str, Any]):
        self._text = canonical_json(fields)
        self.sha256: str = hashlib.sha256(self._text.encode()).hexdigest()

    @property
    def fields(self) -> dict[str, Any]:
        """A fresh copy of the fields, as JSON gives them back (tuples have become lists)."""
        return json.loads(self._text)

    @property
    def short(self) -> str:
        """The first 12 characters of `sha256`, as used in file names."""
        return self.sha256[:12]

    def differences(self, other: Spec) -> list[tuple[str, Any, Any]]:
        """List the fields in which `other` differs from this spec.

        Returns
        -------
        list of (field, theirs, ours)
            Dotted field name (``"transform.resize"``), the value in `other`, the value here;
            `ABSENT` where a side has no such field. Sorted by field.
        """
        ours, theirs = dict(_flatten(self.fields)), dict(_flatten(other.fields))
        return [
            (field, theirs.get(field, ABSENT), ours.get(field, ABSENT))
            for field in sorted(ours.keys() | theirs.keys())
            if canonical_json(theirs.get(field, ABSENT)) != canonical_json(ours.get(field, ABSENT))
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Spec({self.short}: {self._text})"


def joined_spec(specs: Sequence[Spec]) -> Spec:
    """Return the spec of rows that hold the features of several, side by side in this order."""
    return Spec({"joined": {str(number): spec.fields for number, spec in enumerate(specs, 1)}})


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
