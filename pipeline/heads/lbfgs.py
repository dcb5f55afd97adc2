"""L-BFGS for one smooth convex function or many side by side, in numpy alone.

scipy's takes longer to import than a head on ten thousand rows takes to solve, and walks for one function at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

SHORTEST = 1e-3  # step below which rounding alone decides

Values = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def minimize_together(values: Values, start: np.ndarray, tolerance: float, max_iter: int, memory: int,
                      rounding: float, worst: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Minimize A convex functions side by side by L-BFGS; one that is done, or goes wrong, does not hold up others.

    Parameters
    ----------
    values : callable
        From places (B, P) and which functions (B,) they belong to, to values (B,) above 0 and gradients (B, P).
    start : (A, P) array
        Overwritten.
    tolerance : float
        A function is done when its squared gradient is at most this share of its value, and of what it has gained.
    max_iter : int
    memory : int
        Pairs of steps and changes of gradient that are kept.
    rounding : float
        What share of a value may be rounding error, and so does not count as going uphill.
    worst : float, optional
        The value from which gains are counted; by default each function's own at the start.

    Returns
    -------
    (A, P) array, (A,) array
        Places, and steps taken or tried.
    """
    x, active = start, np.arange(len(start))
    f, g = values(x, active)
    first = f.copy() if worst is None else worst
    direction, length, scale = -g, np.ones(len(x)), np.ones(len(x))
    pairs: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque(maxlen=memory)
    iterations = np.zeros(len(x), int)
    while (active := active[(_dots(g, g) > tolerance * np.minimum(f, first - f))[active] & (length[active] > SHORTEST)
                            & (iterations[active] < max_iter)]).size:
        iterations[active] += 1
        step = length[active, None].astype(x.dtype) * direction[active]
        new_f, new_g = values(x[active] + step, active)
        enough = f[active] + 1e-4 * _dots(step, g[active]) + rounding * f[active]
        better = new_f <= enough
        went = active[better]
        length[active] = np.where(better, 1.0, 0.4 * length[active])
        if not went.size:
            continue
        change = new_g[better] - g[went]
        pairs.append(_pair(x, went, step[better], change, scale))
        x[went] += step[better]
        f[went], g[went] = new_f[better], new_g[better]
        direction[went] = _downhill(g[went], pairs, scale[went], went)
    return x, iterations


def _pair(x: np.ndarray, went: np.ndarray, step: np.ndarray, change: np.ndarray,
          scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what L-BFGS keeps of a round, nothing (all zero) of functions that made no step; update their scale."""
    steps, changes, rates = np.zeros_like(x), np.zeros_like(x), np.zeros(len(x))
    curvature, square = _dots(step, change), _dots(change, change)
    sound = curvature > 1e-7 * np.sqrt(square * _dots(step, step))
    kept = went[sound]
    steps[kept], changes[kept] = step[sound], change[sound]
    rates[kept] = 1 / curvature[sound]
    scale[kept] = curvature[sound] / square[sound]
    return steps, changes, rates


def _downhill(g: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray, np.ndarray]], scale: np.ndarray,
              which: np.ndarray) -> np.ndarray:
    """Return the direction that L-BFGS takes from gradients (B, P) of the functions `which`."""
    way, shares = -g, []
    for steps, changes, rates in reversed(pairs):
        share = rates[which] * _dots(steps[which], way)
        way -= share[:, None].astype(way.dtype) * changes[which]
        shares.append(share)
    way *= scale[:, None].astype(way.dtype)
    for (steps, changes, rates), share in zip(pairs, reversed(shares), strict=True):
        back = share - rates[which] * _dots(changes[which], way)
        way += back[:, None].astype(way.dtype) * steps[which]
    return way


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ap,ap->a", a, b).astype(np.float64)
