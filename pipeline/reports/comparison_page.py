"""A page about several runs: what is known of their differences, and the images on which they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Place, place
from ..runs.run import Run
from . import pictures
from .content import neighbours_chart
from .page import render, write_page

MOST_COLUMNS, MOST_CLASSES, MOST_IMAGES = 8, 40, 120

Guesses = dict[tuple[str, str], dict[str, dict[str, str]]]  # (file, label) to each run's row


def write_comparison(compared: Sequence[Mapping[str, Any]], out: Path, *, runs_dir: Path = Path("runs")) -> Path:
    """Write a page about several runs, for a browser without any network.

    Parameters
    ----------
    compared : sequence of mappings
        As `pipeline.compare` returns them.
    out : Path
        The file.
    runs_dir : Path
        Where the runs are.

    Raises
    ------
    PipelineError
        If something of a run cannot be read, or the page not be written.
    """
    found = [group(number, [run for run in compared if run["dataset"] == name], runs_dir)
             for number, name in enumerate(dict.fromkeys(run["dataset"] for run in compared))]  # fmt: skip
    parts = (("table", "Runs"), ("cost", "Cost"), ("classes", "Classes"), ("disputed", "Images"))
    sections = [(f"{part}{one['number']}", f"{title}, {one['dataset']}" if len(found) > 1 else title)
                for one in found for part, title in parts]  # fmt: skip
    tests = [run[field] for run in compared for field in ("versus_best", "versus_baseline") if run.get(field)]
    context = {"groups": found, "sections": sections, "tested": len({one["sentence"] for one in tests}),
               "certain": len({one["sentence"] for one in tests if one.get("distinguishable")})}  # fmt: skip
    return write_page(render("compare.html", context, ("theme.js",)), out)


def group(number: int, compared: Sequence[Mapping[str, Any]], runs_dir: Path) -> dict[str, Any]:
    """Return everything that the page says about the runs of one data set, the best first."""
    opened = [Run.open(run["name"], runs_dir) for run in compared]
    best, split = opened[0], compared[0]["split"]
    rows = {one.name: one.predictions(run["split"]) for one, run in zip(opened, compared, strict=True)}
    differ, shown = disputed(rows, place(best.config()["dataset"]["root"]))
    sentences = [run[field]["sentence"] for field in ("versus_best", "versus_baseline") for run in compared
                 if run.get(field)]  # fmt: skip
    return {
        "number": number, "dataset": pictures.readable(best.metrics["dataset"]), "runs": compared, "split": split,
        "baseline": next((run["name"] for run in compared if run.get("versus_baseline", 0) is None), None),
        "sentences": [pictures.readable(sentence) for sentence in dict.fromkeys(sentences)],
        "chart": neighbours_chart(best, opened, split, name="the best"),
        "classes": by_class(compared), "differ": differ, "images": shown,
    }  # fmt: skip


def by_class(compared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the recall of each class by each run; of many classes those in which runs differ most."""
    columns = [run for run in compared if "per_class" in run["splits"][run["split"]]][:MOST_COLUMNS]
    names = list(dict.fromkeys(name for run in columns for name in run["classes"]))
    lines: list[dict[str, Any]] = []
    for name in names:
        cells = [dict(zip(run["classes"], run["splits"][run["split"]]["per_class"], strict=True)).get(name)
                 for run in columns]  # fmt: skip
        known = [cell["recall"] for cell in cells if cell and cell["recall"] is not None]
        lines.append({"name": pictures.readable(name), "n": max((cell["n"] for cell in cells if cell), default=0),
                      "recalls": [cell["recall"] if cell else None for cell in cells],
                      "spread": max(known) - min(known) if known else 0.0})  # fmt: skip
    if len(lines) > MOST_CLASSES:
        lines = sorted(lines, key=lambda line: -line["spread"])[:MOST_CLASSES]
    return {
        "columns": [run["name"].removeprefix(f"{run['dataset']}-") for run in columns], "lines": lines,
        "classes_left_out": len(names) - len(lines), "runs_left_out": len(compared) - len(columns),
    }  # fmt: skip


def disputed(rows: Mapping[str, Sequence[dict[str, str]]], root: Place) -> tuple[int, list[dict[str, Any]]]:
    """Return on how many images runs disagree, and those that are shown, the most evenly split ones first."""
    guesses: Guesses = {}
    for name, own in rows.items():
        for row in own:
            guesses.setdefault((row["filename"], row["label"]), {})[name] = row
    found = {key: runs for key, runs in guesses.items() if len({row["prediction"] for row in runs.values()}) > 1}

    def lopsided(key: tuple[str, str]) -> float:
        right = sum(row["prediction"] == key[1] for row in found[key].values())
        return abs(right / len(found[key]) - 0.5)

    chosen = sorted(found, key=lambda key: (lopsided(key), key))[:MOST_IMAGES]
    images = pictures.embedded(root, [next(iter(found[key].values())) for key in chosen])
    for key, image in zip(chosen, images, strict=False):  # the page's weight may have ended the images early
        said: dict[str, list[str]] = {}
        for name, row in found[key].items():
            said.setdefault(pictures.readable(row["prediction"]), []).append(name)
        image["said"] = [{"prediction": prediction, "right": prediction == image["label"], "runs": runs}
                         for prediction, runs in sorted(said.items(), key=lambda one: one[0] != image["label"])]
    return len(found), images
