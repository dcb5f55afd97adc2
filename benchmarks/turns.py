"""Ways to do one thing take turns, so that a busy minute of the machine hits each of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Found = TypeVar("Found")


def in_turn(
    ways: Mapping[str, Callable[[], Found]], repeat: int, warm_up: int = 0, skip_failing: bool = False
) -> dict[str, list[Found]]:
    """Call each way once a turn, `repeat` times, and return what it gave each time.

    Parameters
    ----------
    ways : mapping from name to callable
    repeat, warm_up : int
        Turns that count, and turns before them that do not.
    skip_failing : bool
        Tell of a way that fails and leave it out: other people's packages and downloads fail in any way.
    """
    found: dict[str, list[Found]] = {name: [] for name in ways}
    for turn in range(-warm_up, repeat):
        for name in list(found):
            try:
                gave = ways[name]()
            except Exception as error:
                if not skip_failing:
                    raise
                print(f"skipped {name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                del found[name]
                continue
            if turn >= 0:
                found[name].append(gave)
    return found


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]
