"""Names of classes as people mean them: text in one spelling, whatever wrote them down."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable

import numpy as np

from .listing import Samples, first_few


def in_one_spelling(samples: Samples) -> None:
    """Have the classes of a listing as text in Unicode's form NFC, and those as one that are the same then.

    macOS writes the same letters in another form than Linux and Windows do, and old archives and tables write them in
    no Unicode at all. What is not UTF-8 is read as Windows-1252, the likeliest; a note says so. Files keep their names.
    """
    strange = [name for name in samples.classes if _is_foreign(name) and not _is_utf8(name)]
    _rename(samples, decoded)
    if strange:
        samples.notes.append("Names of classes that are not UTF-8, taken as Windows-1252: "
                             f"{first_few(map(decoded, strange))}.")
    if merged := _rename(samples, lambda name: unicodedata.normalize("NFC", name)):
        samples.notes.append(f"Spelled in two ways in Unicode, and taken as one class each: {first_few(merged)}.")


def _is_foreign(name: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in name)  # as `surrogateescape` keeps bytes


def _is_utf8(name: str) -> bool:
    try:
        os.fsencode(name).decode()
    except UnicodeDecodeError:
        return False
    return True


def decoded(name: str) -> str:
    """Return a name as text, whatever this process takes for the encoding of files.

    Bytes, as `os.fsdecode` keeps those that it cannot read, are UTF-8 where they can be, else Windows-1252.
    """
    if not _is_foreign(name):
        return name
    content = os.fsencode(name)
    for encoding in ("utf-8", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")  # Windows-1252 has five bytes that mean nothing


def _rename(samples: Samples, rule: Callable[[str], str]) -> list[str]:
    """Give every class a name by a rule; return the names that several have now, and are one class by that."""
    named = [rule(name) for name in samples.classes]
    if tuple(named) == samples.classes:
        return []
    samples.classes = tuple(sorted(set(named)))
    labels = np.array([samples.classes.index(name) for name in named], np.int64)
    samples.labels = np.where(samples.labels < 0, -1, labels[samples.labels])
    return [name for name in samples.classes if named.count(name) > 1]
