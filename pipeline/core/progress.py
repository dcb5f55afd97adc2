"""Progress reports, without any room below the command line printing something itself.

Long work takes a `progress` argument: called with ``total``, ``desc`` and ``unit`` it returns a
bar, a context manager with ``update(n)`` and ``set_postfix_str(text)``. The class ``tqdm.tqdm`` is
one as it stands; `silent` is the default. What users call takes True too, for tqdm's bars.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


class SilentBar:
    """A bar that shows nothing."""

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done."""

    def set_postfix_str(self, text: str) -> None:
        """Show `text` beside the bar."""


def silent(total: int | None = None, desc: str = "", unit: str = "it") -> SilentBar:
    """Return a bar that shows nothing."""
    return SilentBar()


Progress = Callable[..., Any]


def note(line: str) -> None:
    """Log a remark for the user, under the name of the package: what the command line prints as a note."""
    logging.getLogger(__name__.partition(".")[0]).info(line)


def shown(progress: Progress | bool) -> Progress:
    """Return what makes bars: True is tqdm's, in a notebook or a terminal, and False is none."""
    if progress is True:
        from tqdm.auto import tqdm

        return tqdm
    return progress or silent
