"""L-BFGS for a smooth convex function, in numpy alone: scipy's takes longer to import than a small head to solve."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHORTEST = 1e-3  # step below which rounding alone decides

Pair = tuple[np.ndarray, np.ndarray]
"""A step, and how much the gradient changed along it."""


@dataclass
class Minimum:
    """Where L-BFGS ended.

    Attributes
    ----------
    place : array
    value : float
    iterations : int
        Steps taken or tried.
    reached : bool
        Whether the gradient became small enough; False after `max_iter`, or where rounding left no way down.
    pairs : deque of Pair
        The last steps, with which a similar function's minimization may begin.
    """

    place: np.ndarray
    value: float
    iterations: int
    reached: bool
    pairs: deque[Pair] = field(repr=False)


def minimize(values: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, **how: Any) -> Minimum:
    """Minimize a convex function, from places to values and gradients; see `minimizing`."""
    walk = minimizing(start, **how)
    try:
        place = next(walk)
        while True:
            place = walk.send(values(place))
    except StopIteration as end:
        return end.value


def minimizing(
    start: np.ndarray, *, tolerance: float, max_iter: int, memory: int, rounding: float,
    inverse: np.ndarray | None = None, worst: float = np.inf, pairs: deque[Pair] | None = None,
) -> Generator[np.ndarray, tuple[float, np.ndarray], Minimum]:  # fmt: skip
    """Minimize a convex function whose values are above 0, and which somebody else computes.

    Yields places and takes the value and the gradient there, so that several functions can be computed together.

    Parameters
    ----------
    start : array
    tolerance : float
        The minimum is reached when the squared gradient, in the metric of `inverse`, is at most this share of the
        value, and of what was gained over `worst`. It is about twice what there still is to gain.
    max_iter : int
    memory : int
        Pairs that are kept.
    rounding : float
        What share of a value may be rounding error, and so does not count as going uphill.
    inverse : array, optional
        Diagonal estimate of the inverse second derivatives, of the shape of `start`; by default ones.
    worst : float
        The value from which gains are counted.
    pairs : deque of Pair, optional
        Of a similar function, to begin with.
    """
    x = start
    f, g = yield x
    scale = np.ones_like(x) if inverse is None else inverse
    pairs = deque(pairs or (), maxlen=memory)
    length, iterations = 1.0, 0
    direction = _downhill(g, pairs, scale)
    while _dot(g, scale * g) > tolerance * max(min(f, worst - f), 0.0):
        if iterations == max_iter or length <= SHORTEST:
            return Minimum(x, f, iterations, False, pairs)
        iterations += 1
        step = length * direction
        new_f, new_g = yield x + step
        if not new_f <= f + 1e-4 * _dot(step, g) + rounding * f:
            length *= 0.4
            continue
        change = new_g - g
        if _dot(step, change) > 1e-7 * np.sqrt(_dot(change, change) * _dot(step, step)):
            pairs.append((step, change))
        x, f, g, length = x + step, new_f, new_g, 1.0
        direction = _downhill(g, pairs, scale)
    return Minimum(x, f, iterations, True, pairs)


def _downhill(g: np.ndarray, pairs: deque[Pair], inverse: np.ndarray) -> np.ndarray:
    """Return the direction that L-BFGS takes from a gradient: the two loops of Nocedal, "Updating quasi-Newton
    matrices with limited storage", 1980."""
    way, shares = -g, []
    for step, change in reversed(pairs):
        share = _dot(step, way) / _dot(step, change)
        way -= way.dtype.type(share) * change
        shares.append(share)
    factor = 1.0
    if pairs:
        step, change = pairs[-1]
        factor = _dot(step, change) / _dot(change, inverse * change)
    way *= way.dtype.type(factor) * inverse
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        back = share - _dot(change, way) / _dot(step, change)
        way += way.dtype.type(back) * step
    return way


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b))
