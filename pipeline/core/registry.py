"""Registries: one place for every thing that has a name on the command line; and names that are imported late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

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


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` (PEP 562).

    Parameters
    ----------
    package : str
        Its ``__name__``.
    homes : mapping
        From each name to the module below the package that defines it; behind a colon, how it is called there.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, there = homes[name].partition(":")
        return getattr(import_module(f"{package}.{module}"), there or name)

    return attribute
