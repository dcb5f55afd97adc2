"""Small charts as SVG: they take the page's colours, and stand alone as files too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
STYLE = ("<style>.frame{stroke:currentColor;stroke-opacity:.25;fill:none}text{fill:currentColor;font:12px system-ui,"
         "sans-serif}.s0{--c:#2f6fde}.s1{--c:#d9541e}.s2{--c:#2a9d5c}.line{fill:none;stroke:var(--c);stroke-width:2}"
         ".dot{fill:var(--c)}.bar{stroke:var(--c);stroke-width:1.5}.even{stroke:currentColor;stroke-opacity:.4;"
         "stroke-dasharray:4 4}</style>")  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A dot: its place, an interval of y, and words for it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Point]
    line: bool = True


def chart(series: Sequence[Series], *, title: str, x: str, y: str, x_log: bool = False,
          x_range: tuple[float, float] | None = None, y_range: tuple[float, float] | None = None,
          diagonal: bool = False) -> str:
    """Return an SVG chart.

    Parameters
    ----------
    series : sequence of Series
    title : str
        What it shows, for those who cannot see it.
    x, y : str
        Names of the axes.
    x_log : bool
    x_range, y_range : (low, high), optional
    diagonal : bool
        Draw the line y = x.
    """
    points = [point for one in series for point in one.points]
    xs = x_range or _range([point.x for point in points], x_log)
    ys = y_range or _range([value for point in points for value in (point.y, point.low, point.high)
                            if value is not None])  # fmt: skip
    across = _scale(xs, LEFT, WIDTH - RIGHT, x_log)
    up = _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = [_axes(xs, ys, across, up, x, y, x_log)]
    if diagonal:
        parts.append(f'<line class="even" x1="{across(xs[0]):.1f}" y1="{up(xs[0]):.1f}" x2="{across(xs[1]):.1f}" '
                     f'y2="{up(xs[1]):.1f}"/>')  # fmt: skip
    parts += [_drawn(one, number, across, up) for number, one in enumerate(series)]
    if len(series) > 1:
        parts += [_key(one.name, number) for number, one in enumerate(series)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}"><title>{escape(title)}</title>{STYLE}{"".join(parts)}</svg>')


def _drawn(one: Series, number: int, across: Any, up: Any) -> str:
    dots, places = [], []
    for point in one.points:
        left, top = across(point.x), up(point.y)
        places.append(f"{left:.1f},{top:.1f}")
        if point.low is not None and point.high is not None:
            dots.append(f'<line class="bar" x1="{left:.1f}" x2="{left:.1f}" y1="{up(point.low):.1f}" '
                        f'y2="{up(point.high):.1f}"/>')  # fmt: skip
        words = f"<title>{escape(point.text)}</title>" if point.text else ""
        dots.append(f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="4">{words}</circle>')
    line = f'<polyline class="line" points="{" ".join(places)}"/>' if one.line else ""
    return f'<g class="s{number % 3}">{line}{"".join(dots)}</g>'


def _key(name: str, number: int) -> str:
    top = TOP + 14 + 17 * number
    return (f'<g class="s{number % 3}"><rect class="dot" x="{LEFT + 10}" y="{top - 9}" width="10" height="10" rx="2"/>'
            f'<text x="{LEFT + 26}" y="{top}">{escape(name)}</text></g>')


def _axes(xs: tuple[float, float], ys: tuple[float, float], across: Any, up: Any, x: str, y: str, log: bool) -> str:
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - TOP}"/>']
    for tick in _ticks(*xs, log):
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(*ys):
        parts.append(f'<line class="frame" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(13,{middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    return "".join(parts)


def _range(values: Sequence[float], log: bool = False) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        low = max(low, 1e-3)
        return low / 1.6, max(high, low) * 1.6
    room = (high - low) * 0.06 or abs(high) * 0.06 or 0.5
    return low - room, high + room


def _scale(ends: tuple[float, float], start: float, stop: float, log: bool = False) -> Any:
    low, high = (math.log10(end) for end in ends) if log else ends

    def place(value: float) -> float:
        value = math.log10(max(value, ends[0])) if log else value
        return start + (value - low) / ((high - low) or 1) * (stop - start)

    return place


def _ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return about five round numbers between two ends."""
    if log:
        steps = [base * 10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                 for base in ((1, 2, 5) if high / low < 300 else (1,))]  # fmt: skip
        inside = [step for step in steps if low <= step <= high]
        return inside if len(inside) > 2 else _ticks(low, high)
    rough = (high - low) / 5 or 1
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if rough <= factor * unit)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
