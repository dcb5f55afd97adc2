"""Putting the page together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import PipelineError
from ..data import place
from ..data.files import is_there
from ..data.transforms import Transform
from ..runs.run import EvaluatedRun, Run, list_runs
from ..store import FeatureCache
from . import content, pictures
from .plots import check_format, plots_of, write_plots

EVALUATED = ("test", "val", "train")
MAPPED = 1000  # images on the map: t-SNE takes seconds for them


def write_report(
    run: str | Path | Run | Any, *, cache_dir: str | Path = "cache", out: Path | None = None, plots: Path | None = None,
    plot_format: str = "svg", runs_dir: str | Path = "runs",
) -> Path:  # fmt: skip
    """Write a page about a run, for a browser without any network.

    Parameters
    ----------
    run : str, path, Run or Evaluation
        By name below `runs_dir`, or folder; or what `evaluate_runs` returned, about the images of that.
    cache_dir : Path
        Where its features are; without them the page has no map.
    out : Path, optional
        The file; ``report.html`` in the run's folder by default.
    plots, plot_format : Path, {"svg", "png"}, optional
        A folder for the page's plots, each as a file of its own.

    Raises
    ------
    PipelineError
        If something of the run cannot be read, or the page or its plots not be written.
    """
    run, cache_dir = _opened(run, Path(runs_dir)), Path(cache_dir)
    if plots:
        check_format(plot_format)
    cache = content.cache_of(run, cache_dir)
    with cache or nullcontext():
        context = facts(run, cache)
    if plots:
        write_plots(plots_of(context), plots, plot_format)
    usual = run.table.with_suffix(".html") if isinstance(run, EvaluatedRun) else run.path / "report.html"
    return write_page(render("page.html", context, ("theme.js", "page.js")), out or usual)


def _opened(run: Any, runs_dir: Path) -> Run:
    if isinstance(run, Run):
        return run
    if hasattr(run, "predictions") and hasattr(run, "path"):  # what `evaluate_runs` returns
        return EvaluatedRun.of(run.path)
    return Run.open(run, runs_dir)


def write_page(text: str, path: Path) -> Path:
    """Put a page where an older one was, whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(prefix=".report.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    except OSError as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
    return path


def render(page: str, context: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """Fill a template; every value is escaped, names of files and classes included."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    style, *parts = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", *scripts))
    environment = Environment(loader=PackageLoader("pipeline", "reports"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template(page).render(**context, style=style, script="\n".join(parts))


def facts(run: Run, cache: FeatureCache | None) -> dict[str, Any]:
    """Return everything that a page about a run says, as plain values."""
    metrics, config, elsewhere = run.metrics, run.config(), isinstance(run, EvaluatedRun)
    split = next((name for name in EVALUATED if name in metrics["splits"]), next(iter(metrics["splits"])))
    rows, root = run.predictions(split), place(config["dataset"]["root"])
    shown = pictures.chosen(rows)
    images = pictures.embedded(root, [rows[index] for index in shown])
    classes = [pictures.readable(name) for name in metrics["classes"]]
    places = {rows[index]["filename"]: number for number, index in enumerate(shown[: len(images)])}
    train = [row for row in run.predictions("train") if is_there(root / row["filename"])]
    finetune = config.get("finetune", {})
    spec_sha256 = cache.spec.sha256 if cache else metrics.get("spec_sha256") or ""
    readable = [{**row, "label": pictures.readable(row["label"]), "prediction": pictures.readable(row["prediction"])}
                for row in rows]  # fmt: skip
    return {
        "run": metrics, "split": split, "scores": metrics["splits"][split], "classes": classes,
        "confusion": content.confusion(readable, classes),
        "images": images, "left_out": len(rows) - len(images),
        "wrong": sum(row["label"] != row["prediction"] for row in rows), "map": feature_map(run, cache, places),
        "charts": {
            "reliability": content.reliability_chart(
                rows, content.before_temperature(run, None if elsewhere else cache, split)),
            "neighbours": content.neighbours_chart(run, [run] if elsewhere else list_runs(run.path.parent), split),
            "history": content.history_charts(run),
            "curve": content.learning_curve(run, spec_sha256),
            "layers": content.layer_chart(run),
        },
        "curve_command": pictures.readable(content.curve_command(run)),
        "augmented": pictures.augmented(
            root, train[:: max(1, len(train) // 4)][:4], finetune.get("augmentation", "tutorial"), _transform(config)),
        "augmentation": finetune.get("augmentation", "tutorial"),
        "config": pictures.readable((run.path / "config.toml").read_text(encoding="utf-8", errors="replace")),
        "versions": {} if cache is None else cache.meta.get("versions", {}),
        "spec_sha256": metrics.get("spec_sha256") or "",
        "command": pictures.readable(content.command(run)),
    }  # fmt: skip


def _transform(config: Mapping[str, Any]) -> Transform:
    """Return what the network's images go through; of features that came without a network, something usual."""
    first = config["backbone"].get("joined", [config["backbone"]])[0]
    return Transform.from_dict(first["transform"]) if "transform" in first else Transform((256, 256), (224, 224))


def feature_map(run: Run, cache: FeatureCache | None, places: Mapping[str, int]) -> dict[str, Any] | None:
    """Return where the images lie in the plane, and what is known of each."""
    if cache is None or len(cache) < 3:
        return None
    rows, root = _sample(cache), place(cache.meta["root"])
    maps = pictures.projected(cache.read_rows(rows, view=0))
    predicted = {row["filename"]: row["prediction"] for row in run.predictions()}
    points = []
    for index, row in enumerate(rows.tolist()):
        name, label = cache.paths[row], int(cache.labels[row])
        guess = predicted.get(name, "")
        true = cache.classes[label] if label >= 0 else ""
        points.append({
            "name": pictures.readable(name), "label": pictures.readable(true), "split": str(cache.splits[row]),
            "prediction": pictures.readable(guess), "right": guess == true if guess and true else None,
            "image": places.get(name), "src": None if name in places else pictures.tiny(root / name),
            "at": {kind: _short(map_[index]) for kind, map_ in maps.items()},
        })  # fmt: skip
    return {"points": points, "kinds": list(maps), "left_out": len(cache) - len(rows)}


def _sample(cache: FeatureCache) -> np.ndarray:
    if len(cache) <= MAPPED:
        return np.arange(len(cache))
    return np.sort(np.random.default_rng(0).choice(len(cache), MAPPED, replace=False))


def _short(place: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in place]
