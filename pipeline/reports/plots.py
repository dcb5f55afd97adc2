"""Small charts as SVG: they take the page's colours, and stand alone as files too."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError, UnknownNameError
from .fonts import files_for, font_for

WIDTH, HEIGHT = 460, 300
RIGHT, TOP, BOTTOM = 14, 12, 44
LETTER, LINE = 6.8, 17  # width of a letter and height of a line, about
CELL, NAME = 34, 160  # side of a matrix's cells; width of a column of names beside a map
COLOURS = ("#2f6fde", "#d9541e", "#2a9d5c", "#9b59d0", "#b8860b", "#d04a88")
# no CSS variables: programs that draw SVG files outside browsers know none
STYLE = "<style>{}{}</style>".format(
    ".frame{stroke:currentColor;stroke-opacity:.25;fill:none}text{fill:currentColor;font:12px system-ui,sans-serif}"
    ".line{fill:none;stroke-width:2}.span{stroke-width:1.5}.band{fill-opacity:.16}"
    ".even{stroke:currentColor;stroke-opacity:.4;stroke-dasharray:4 4}",
    "".join(f".s{number} .line,.s{number} .span{{stroke:{colour}}}"
            f".s{number} .dot,.s{number} .band{{fill:{colour}}}" for number, colour in enumerate(COLOURS)),
)  # fmt: skip
FORMATS = ("svg", "png")
ZOOM = 3  # of PNG files: sharp on paper
PNG = "PNG files of plots need resvg: pip install resvg_py. SVG files (--format svg) need nothing."


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
    """Points that belong together: joined by a line, their intervals as a band; of a given colour, or the next."""

    name: str
    points: Sequence[Point]
    line: bool = True
    band: bool = False
    colour: int | None = None


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
        Draw the line y = x. The names of several series stand above the frame.
    """
    points = [point for one in series for point in one.points]
    xs = x_range or _range([point.x for point in points], x_log)
    ys = y_range or _range([value for point in points for value in (point.y, point.low, point.high)
                            if value is not None])  # fmt: skip
    named = [(one.name, _colour(one, number)) for number, one in enumerate(series) if one.name]
    named = named if len(named) > 1 else []
    left = 26 + LETTER * max((len(f"{tick:g}") for tick in _ticks(*ys)), default=1)
    top = TOP + LINE * len(named)
    height = HEIGHT + LINE * len(named)
    across = _scale(xs, left, WIDTH - RIGHT, x_log)
    up = _scale(ys, height - BOTTOM, top)
    parts = [_axes(xs, ys, across, up, x, y, x_log)]
    if diagonal:
        parts.append(f'<line class="even" x1="{across(xs[0]):.1f}" y1="{up(xs[0]):.1f}" x2="{across(xs[1]):.1f}" '
                     f'y2="{up(xs[1]):.1f}"/>')  # fmt: skip
    parts += [_drawn(one, _colour(one, number), across, up) for number, one in enumerate(series)]
    parts += [_key(name, colour, left, TOP + 8 + LINE * number) for number, (name, colour) in enumerate(named)]
    return _svg(title, "".join(parts), WIDTH, height)


def _svg(title: str, content: str, width: float, height: float) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="{escape(title)}"><title>{escape(title)}</title>{STYLE}{content}</svg>')


def _colour(one: Series, number: int) -> int:
    return (number if one.colour is None else one.colour) % len(COLOURS)


def _drawn(one: Series, colour: int, across: Any, up: Any) -> str:
    places = [f"{across(point.x):.1f},{up(point.y):.1f}" for point in one.points]
    line = f'<polyline class="line" points="{" ".join(places)}"/>' if one.line else ""
    dots = "".join(_dot(point, across(point.x), up, bars=not one.band) for point in one.points)
    return f'<g class="s{colour}">{_band(one, across, up) if one.band else ""}{line}{dots}</g>'


def _dot(point: Point, left: float, up: Any, bars: bool) -> str:
    words = f"<title>{escape(point.text)}</title>" if point.text else ""
    dot = f'<circle class="dot" cx="{left:.1f}" cy="{up(point.y):.1f}" r="4">{words}</circle>'
    if not bars or point.low is None or point.high is None:
        return dot
    return (f'<line class="span" x1="{left:.1f}" x2="{left:.1f}" y1="{up(point.low):.1f}" '
            f'y2="{up(point.high):.1f}"/>{dot}')  # fmt: skip


def _band(one: Series, across: Any, up: Any) -> str:
    known = [(across(point.x), point.low, point.high) for point in one.points
             if point.low is not None and point.high is not None]  # fmt: skip
    ends = [f"{x:.1f},{up(high):.1f}" for x, _, high in known] + [f"{x:.1f},{up(low):.1f}" for x, low, _ in known[::-1]]
    return f'<polygon class="band" points="{" ".join(ends)}"/>'


def _key(name: str, colour: int, left: float, top: float) -> str:
    return (f'<g class="s{colour}"><rect class="dot" x="{left:g}" y="{top - 9:g}" width="10" height="10" rx="2"/>'
            f'<text x="{left + 16:g}" y="{top:g}">{escape(name)}</text></g>')


def scatter(groups: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> str:
    """Return an SVG map of points within 0..1, a colour a group; the names stand beside it, in columns."""
    rows = (HEIGHT - TOP) // LINE
    parts, names = [f'<rect class="frame" x="1" y="1" width="{HEIGHT - 2}" height="{HEIGHT - 2}"/>'], list(groups)
    for number, name in enumerate(names):
        colour = f"hsl({360 * number / len(names) + 212:.0f},68%,{48 + number % 2 * 12}%)"
        parts.append(f'<g fill="{colour}">')
        parts += [f'<circle cx="{8 + (HEIGHT - 16) * x:.1f}" cy="{HEIGHT - 8 - (HEIGHT - 16) * y:.1f}" r="2.5"/>'
                  for x, y in groups[name]]  # fmt: skip
        column, row = divmod(number, rows)
        left, top = HEIGHT + 12 + NAME * column, TOP + LINE * row
        parts.append(f'<rect x="{left}" y="{top}" width="10" height="10" rx="2"/></g>'
                     f'<text x="{left + 16}" y="{top + 9}">{escape(_short(name))}</text>')
    return _svg(title, "".join(parts), HEIGHT + 12 + NAME * -(-len(names) // rows), HEIGHT)


def matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], *, title: str) -> str:
    """Return an SVG of a confusion matrix: true classes down, predicted ones across."""
    most, left, parts = max(max(row) for row in counts) or 1, 8 + 6.5 * max(len(_short(name)) for name in classes), []
    top = left
    for row, values in enumerate(counts):
        middle = top + CELL * row + CELL / 2 + 4
        parts.append(f'<text x="{left - 6:g}" y="{middle:g}" text-anchor="end">{escape(_short(classes[row]))}</text>')
        parts.append(f'<text transform="translate({left + middle - top:g},{top - 6:g}) rotate(-90)">'
                     f'{escape(_short(classes[row]))}</text>')  # fmt: skip
        for column, n in enumerate(values):
            place = f'x="{left + CELL * column + 1:g}" y="{top + CELL * row + 1:g}"'
            shade, colour = (0.12 + 0.6 * n / most if n else 0.04), COLOURS[0 if row == column else 1]
            parts.append(f'<rect {place} width="{CELL - 2}" height="{CELL - 2}" fill="{colour}" '
                         f'fill-opacity="{shade:.2f}"/>')  # fmt: skip
            if n:
                place = f'x="{left + CELL * (column + 0.5):g}" y="{middle:g}"'
                parts.append(f'<text {place} text-anchor="middle">{n}</text>')
    side = CELL * len(classes)
    parts.append(f'<text x="{left:g}" y="{top + side + 18:g}">true classes down, predicted ones across</text>')
    return _svg(title, "".join(parts), max(left + side, left + 250) + 8, top + side + 28)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _axes(xs: tuple[float, float], ys: tuple[float, float], across: Any, up: Any, x: str, y: str, log: bool) -> str:
    left, right, top, bottom = across(xs[0]), across(xs[1]), up(ys[1]), up(ys[0])
    parts = [f'<rect class="frame" x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"/>']
    for tick in _ticks(*xs, log):
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 16:g}" text-anchor="middle">{tick:g}</text>')
    for tick in _ticks(*ys):
        parts.append(f'<line class="frame" x1="{left:g}" x2="{right:g}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
                     f'<text x="{left - 6:g}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{(left + right) / 2:g}" y="{bottom + 36:g}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(13,{(top + bottom) / 2:g}) rotate(-90)" text-anchor="middle">'
                 f'{escape(y)}</text>')
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


def check_format(name: str) -> None:
    """Refuse a format that is unknown, or whose library is missing, before any work."""
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    if name == "png":
        _resvg()


def plots_of(context: Mapping[str, Any]) -> dict[str, str]:
    """Return every plot of a page as SVG, by name."""
    charts, scored = context["charts"], f"{context['run']['name']}, {context['split']}"
    found = {"calibration": charts["reliability"], "accuracy-and-seconds": charts["neighbours"]}
    found |= {f"training-{name}": svg for name, svg in charts["history"].items()}
    if charts["curve"]:
        found["learning-curve"] = charts["curve"]["chart"]
    if cells := context["confusion"]["matrix"]:
        counts = [[cell["n"] for cell in row] for row in cells]
        found["confusion"] = matrix(counts, context["classes"], title=f"Confusion matrix of {scored}")
    if map_ := context["map"]:
        for kind in map_["kinds"]:
            groups: dict[str, list[tuple[float, float]]] = {}
            for point in sorted(map_["points"], key=lambda point: point["label"]):
                groups.setdefault(point["label"] or "unlabelled", []).append(tuple(point["at"][kind]))
            found[f"map-{re.sub('[^a-z]', '', kind.lower())}"] = scatter(groups, title=f"{kind} of the features")
    return found


def write_plots(found: Mapping[str, str], folder: Path, name: str) -> list[Path]:
    """Write plots into a folder, made if need be, on white paper."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for title, svg in found.items():
            whole = svg.replace("<style>", '<rect width="100%" height="100%" fill="#fff"/><style>', 1)
            path = folder / f"{title}.{name}"
            path.write_bytes(_as_png(whole) if name == "png" else whole.encode())
            paths.append(path)
    except OSError as error:
        raise PipelineError(f"Cannot write plots into {str(folder)!r}: {error.strerror}.") from error
    return paths


def _as_png(svg: str) -> bytes:
    """Draw a plot, with fonts that come with packages: a machine need have none."""
    text = unescape(re.sub(r"<style>.*?</style>|<[^>]*>", "", svg, flags=re.DOTALL))
    family = font_for("A", 12).getname()[0]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, content in enumerate(files_for(text)):
            files.append(f"{folder}/{number}.ttf")
            Path(files[-1]).write_bytes(content)
        return bytes(_resvg().svg_to_bytes(svg_string=svg, zoom=ZOOM, font_files=files, font_family=family,
                                           sans_serif_family=family))


def _resvg() -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise PipelineError(PNG) from error
    return resvg_py
