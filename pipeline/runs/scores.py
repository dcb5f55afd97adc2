"""What runs score: every split by one function, and all runs beside each other with tests of their differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import PipelineError
from ..core.frames import Rows
from ..evaluation import evaluate
from ..evaluation.comparison import compared
from .run import SPLITS, Run, latest_run, list_runs, split_of


def score_splits(splits: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Evaluate each split that has images.

    Parameters
    ----------
    splits, labels : (N,) arrays
    scores : (N, K) array
        Probabilities.
    """
    return {name: evaluate(labels[splits == name], scores[splits == name]) for name in SPLITS if (splits == name).any()}


def seconds_of(extract_seconds: float, train_seconds: float) -> dict[str, float]:
    """Return what a run took, as its metrics tell it."""
    return {
        "extract": round(extract_seconds, 3),
        "train": round(train_seconds, 3),
        "total": round(extract_seconds + train_seconds, 3),
    }


def compare(
    data: str | None = None, *, baseline: str | None = None, runs_dir: str | Path = "runs"
) -> Rows[dict[str, Any]]:
    """Return the metrics of all runs, those of one data set together, the most accurate first, and of as
    accurate ones that of the least log loss.

    `to_frame` of what is returned gives a data frame.

    Each gets a field ``split``: the one it is sorted by, test where there is one, else val, else train; and
    ``versus_best`` or, if there is a baseline for its data set, ``versus_baseline``: paired tests on the images of
    that split which both predicted, see `pipeline.evaluation.comparison.compared`.

    Parameters
    ----------
    data : str, optional
        Only runs of this data set: its name, or what was given as ``--data``.
    baseline : str, optional
        Name or folder of the run that all others of its data set are compared with.

    Raises
    ------
    PipelineError
        If there is no run, or no such baseline among them.
    """
    found = {run.name: run for run in runs_of(data, Path(runs_dir))}
    if not found:
        what = f" of {data!r}" if data else ""
        raise PipelineError(f"No runs{what} in {str(runs_dir)!r}: run `pipeline train-head` or `finetune` first.")
    runs = ranked({**run.metrics, "name": name} for name, run in found.items())
    rows = {run["name"]: found[run["name"]].predictions(run["split"]) for run in runs}
    return Rows(compared(runs, rows, Run.open(baseline, Path(runs_dir)).name if baseline else None))


def runs_of(data: str | None, runs_dir: Path) -> Iterator[Run]:
    """Yield the runs of a data set, by its name or what was given as ``--data``; of all, for None."""
    for run in list_runs(runs_dir):
        dataset = run.config().get("dataset", {})
        if data is None or data in (dataset.get("name"), dataset.get("data"), dataset.get("root")):
            yield run


def best_run(runs_dir: Path) -> tuple[Run, int]:
    """Return the most accurate of the runs that compare with the latest one on images, and how many those are.

    They are of the same data set and classes, and scored on as many images of the same split.

    Raises
    ------
    RunError
        If there is no run.
    """
    newest = latest_run(runs_dir)
    runs = [run for run in list_runs(runs_dir) if not run.config().get("backbone", {}).get("given")]
    wanted = _images((runs[-1] if runs else newest).metrics)  # a head on given features has no network for images
    alike = {run.name: run for run in runs or [newest] if _images(run.metrics) == wanted}
    best = ranked({**run.metrics, "name": name} for name, run in alike.items())[0]
    return alike[best["name"]], len(alike)


def _images(metrics: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what runs must share to be compared."""
    place = metrics.get("asked", {}).get("data")
    sizes = {name: scores["n"] for name, scores in metrics["splits"].items() if name != "train"}
    return metrics["dataset"], place, tuple(metrics["classes"]), sizes


def ranked(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return metrics of runs with the field ``split`` that they are sorted by, as `compare` does."""

    def place(run: Mapping[str, Any]) -> tuple[Any, ...]:
        scores = run["splits"][run["split"]]
        return run["dataset"], -scores["accuracy"], scores["log_loss"], run["name"]

    return sorted(({**run, "split": split_of(run)} for run in runs), key=place)
