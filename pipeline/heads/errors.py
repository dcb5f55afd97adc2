"""The heads' errors: ordinary `ValueError`s for scikit-learn, one clear line for the command line."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import PipelineError, suggestion


class HeadError(PipelineError, ValueError):
    """A head's settings, features or labels cannot be used as given."""


def known(kind: str, name: str, names: Iterable[str]) -> None:
    """Raise a `HeadError` that lists the known `names` unless `name` is one of them."""
    names = list(names)
    if name not in names:
        raise HeadError(f"Unknown {kind} {name!r}.{suggestion(str(name), names)}")
