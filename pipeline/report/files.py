"""The plots of a page as files of their own, for slides and papers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import PipelineError, UnknownNameError
from . import plots

FORMATS = ("svg", "png")
ZOOM = 3  # of PNG files: sharp on paper
PNG = "PNG files of plots need resvg: pip install resvg_py. SVG files (--format svg) need nothing."


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
        found["confusion"] = plots.matrix(counts, context["classes"], title=f"Confusion matrix of {scored}")
    if map_ := context["map"]:
        for kind in map_["kinds"]:
            groups: dict[str, list[tuple[float, float]]] = {}
            for point in sorted(map_["points"], key=lambda point: point["label"]):
                groups.setdefault(point["label"] or "unlabelled", []).append(tuple(point["at"][kind]))
            found[f"map-{re.sub('[^a-z]', '', kind.lower())}"] = plots.scatter(groups, title=f"{kind} of the features")
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
    """Draw a plot, with Pillow's own font: a machine need have none."""
    from PIL import ImageFont

    font: Any = ImageFont.load_default(12)
    with tempfile.NamedTemporaryFile(suffix=".ttf") as file:
        file.write(font.path.getvalue())
        file.flush()
        return bytes(_resvg().svg_to_bytes(svg_string=svg, zoom=ZOOM, font_files=[file.name],
                                           font_family=font.getname()[0], sans_serif_family=font.getname()[0]))


def _resvg() -> Any:
    try:
        import resvg_py
    except ImportError as error:
        raise PipelineError(PNG) from error
    return resvg_py
