"""Registries: one place for every thing that has a name on the command line."""

from __future__ import annotations

from typing import TypeVar

from .errors import UnknownNameError

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary from a public name to its entry, with a helpful error for an unknown one.

    Command-line choices, "did you mean" hints and the contract tests all read registries, so one
    new entry is all that a new backbone, data set, head or strategy needs.

    Parameters
    ----------
    kind : str
        What the entries are, as used in messages: ``"head"``.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UnknownNameError(self.kind, name, self)
