"""Errors that a user can act on.

Every error raised on purpose is a `PipelineError`. The command line prints it as one line, ``error: <message>``, and
exits with its `exit_code`; from Python it is an ordinary exception. A message says what is wrong, the actual value,
where, and what to do about it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any


class PipelineError(Exception):
    """Something the user can mend: bad input, a missing file, an impossible combination."""

    exit_code = 2


class UnknownNameError(PipelineError):
    """A name that no registry holds; the message suggests the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"Unknown {kind} {name!r}.{suggestion(name, self.known)}")


class DataError(PipelineError):
    """The data set cannot be used as given."""


class WeightsError(PipelineError):
    """A weights file cannot be read, or holds another network's weights."""


class EngineError(PipelineError):
    """An engine is missing, or cannot run this network; another one can."""


class CacheError(PipelineError):
    """A features cache is missing, stale, made for other data, or not ours to read."""


class RunError(PipelineError):
    """A run folder is missing, incomplete, or was made by something else."""


class ClusterError(PipelineError):
    """A Dask cluster does not answer, or a worker of it is not fit for the work."""


class CheckFailedError(PipelineError):
    """A check that was asked for found something, such as `cache verify` on a damaged file."""

    exit_code = 1


class BusyError(PipelineError):
    """Another process holds this cache or run."""

    exit_code = 75


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def suggestion(name: str, known: Iterable[str], most: int = 12) -> str:
    """Return " Did you mean 'x'? Known: a, b, …" for a name that was not found.

    Parameters
    ----------
    name : str
        What the user typed.
    known : iterable of str
        What would have been accepted.
    most : int
        Known names listed at the most.
    """
    known = list(known)
    alike = [one for one in known if one.lower() == name.lower()]  # capitals are the likeliest slip
    close = alike or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    text = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    if known:
        more = f", … ({len(known)} in all)" if len(known) > most else ""
        text += f" Known: {', '.join(known[:most])}{more}."
    return text


def check_keywords(kind: str, given: Iterable[str], known: Iterable[str], function: Callable[..., Any]) -> None:
    """Refuse keywords that are neither known settings nor parameters of the function that took them in ``**more``.

    Raises
    ------
    UnknownNameError
    """
    known = list(known)
    for name in given:
        if name not in known:
            also = [one for one in inspect.signature(function).parameters if one != "more"]
            raise UnknownNameError(kind, name, [*known, *also])


class HeadError(PipelineError, ValueError):
    """A head's settings, features or labels cannot be used as given."""


def known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise a `HeadError` that lists the known `names` unless `name` is one of them."""
    names = list(names)
    if name not in names:
        raise HeadError(f"Unknown {kind} {name!r}.{suggestion(str(name), names)}")
