"""Run folders: what a trained classifier leaves behind, and the only code that reads or writes it.

``runs/<name>/`` holds `metrics.json`, `predictions.csv`, `config.toml` and the weights. It appears whole:
everything is written to a folder beside it, which then takes the place of an older run of that name.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import BusyError, RunError, suggestion
from ..core.frames import frame
from ..core.notebooks import html_table
from ..store.disk import hold

FORMAT = 1
EVALUATIONS = "evaluations"  # folder in a run's: what it scores on other images
SURVEYS = "layers"  # likewise
CURVES = "learning-curves"  # folder beside the runs: they belong to features, not to one run
SPLITS = ("train", "val", "test")
COLUMNS = ("filename", "split", "label", "prediction", "prob")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    path : Path
        Its folder.
    metrics : dict
        `metrics.json`.
    remark : str
        What became of an earlier run of that name, where this one has just been written; empty otherwise.
    """

    path: Path
    metrics: dict[str, Any]
    remark: str = ""

    @classmethod
    def open(cls, run: str | Path, runs_dir: Path = Path("runs")) -> Run:
        """Open a run by its folder, or by its name below `runs_dir`.

        Raises
        ------
        RunError
            If there is no such run, or it is not complete.
        """
        for path in (runs_dir / run, Path(run)):
            if (path / "metrics.json").is_file():
                return cls(path, _read(path / "metrics.json", json.loads))
        known = [found.path.name for found in list_runs(runs_dir)]
        raise RunError(f"No run {str(run)!r} in {str(runs_dir)!r}.{suggestion(str(run), known)}")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def features(self) -> list[str]:
        """The SHA-256 of the spec of each cache that it was trained on; none of a network fine-tuned from images."""
        parts = self.metrics.get("joined", [self.metrics])
        own = [part["spec_sha256"] for part in parts if part.get("spec_sha256")]
        return own + ([self.metrics["activations"]] if self.metrics.get("activations") else [])

    def _repr_html_(self) -> str:
        """Show a notebook the figures of each split."""
        header = ("split", "n", "accuracy", "accuracy_ci95", "balanced_accuracy", "log_loss")
        rows = [(name, *(scores.get(key) for key in header[1:])) for name, scores in self.metrics["splits"].items()]
        return html_table(f"run {self.name}", header, rows)

    def config(self) -> dict[str, Any]:
        """Read `config.toml`: what made the run."""
        return _read(self.path / "config.toml", tomllib.loads)

    def __repr__(self) -> str:
        scores = self.metrics.get("splits", {})
        told = ", ".join(f"{split} {one['accuracy']:.4f} (n = {one['n']:,})" for split, one in scores.items())
        return f"<Run {self.path}: {told or 'nothing scored'}>"

    def to_frame(self, split: str | None = None) -> Any:
        """Return `predictions` as a pandas data frame, `prob` as a number."""
        found = frame(self.predictions(split))
        found["prob"] = found["prob"].replace("", "nan").astype(float)
        return found

    def predictions(self, split: str | None = None) -> list[dict[str, str]]:
        """Read `predictions.csv`, a row an evaluated image: of one split, or of all.

        Raises
        ------
        RunError
            If there is no such file.
        """
        return _predictions(self.path / "predictions.csv", split)


def _predictions(table: Path, split: str | None = None) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [row for row in csv.DictReader(file) if split in (None, row["split"])]
    except (OSError, KeyError, csv.Error) as error:
        raise RunError(f"Cannot read the predictions of {str(table.parent)!r}: {error}.") from error


@dataclass(frozen=True)
class EvaluatedRun(Run):
    """A run as it does on other images.

    Attributes
    ----------
    table : Path
        Its predictions of them, as `save_evaluation` wrote them.
    """

    table: Path = Path()

    @classmethod
    def of(cls, table: Path) -> EvaluatedRun:
        """Open what was kept of an evaluation.

        Raises
        ------
        RunError
            If it is not complete.
        """
        run, told = Run.open(table.parent.parent), _read(table.with_suffix(".json"), json.loads)
        metrics = {**run.metrics, "name": f"{run.name} on {told['dataset']}", "dataset": told["dataset"],
                   "splits": {told["split"]: told["scores"]}}
        return cls(run.path, {key: value for key, value in metrics.items() if key != "calibration"}, table=table)

    def config(self) -> dict[str, Any]:
        """Read `config.toml`, but for where the images are."""
        told, config = _read(self.table.with_suffix(".json"), json.loads), super().config()
        return {**config, "dataset": {**config["dataset"], "root": told["root"]}}

    def predictions(self, split: str | None = None) -> list[dict[str, str]]:
        """Read the predictions of these images; of all splits, since one was asked for when they were made."""
        return _predictions(self.table) if split in (None, *self.metrics["splits"]) else []


def split_of(metrics: Mapping[str, Any]) -> str:
    """Return the split that a run is judged by: test where it was scored on one, else val, else train."""
    return next(name for name in reversed(SPLITS) if name in metrics["splits"])


def list_runs(runs_dir: Path) -> list[Run]:
    """Return every finished run below `runs_dir`, the oldest first; folders that are no runs are passed over."""
    found = sorted(runs_dir.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    runs = []
    for path in found:
        try:
            runs.append(Run(path.parent, _read(path, json.loads)))
        except RunError:
            continue
    return [run for run in runs if "splits" in run.metrics]


def remove_run(run: Run) -> None:
    """Remove a run's folder; no other process may be writing it.

    Raises
    ------
    BusyError, RunError
        If one is, or the folder cannot be removed.
    """
    with writing(run.path):
        aside = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.old.", dir=run.path.parent))
        run.path.rename(aside / run.path.name)  # gone at once, and whole until then
        shutil.rmtree(aside)


def latest_run(runs_dir: Path) -> Run:
    """Return the run that was finished last.

    Raises
    ------
    RunError
        If there is none.
    """
    found = list_runs(runs_dir)
    if not found:
        raise RunError(f"No runs in {str(runs_dir)!r}. Run `pipeline train-head` first.")
    return found[-1]


def save_learning_curve(runs_dir: Path, dataset: str, spec_sha256: str, curve: Mapping[str, Any]) -> Path:
    """Keep one head's learning curve where reports find it: instead of one with the same ``asked``, beside any other.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    name = f"{_curve_of(dataset, spec_sha256)}-{curve['head']}"
    path = next(path for path in _numbered(runs_dir / CURVES, name, ".json") if _is_free(path, curve["asked"]))
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_json(path, curve)
    return path


def save_layer_survey(runs_dir: Path, dataset: str, backbone: str, found: Mapping[str, Any]) -> Path:
    """Keep what `layers` found of a data set and backbone where reports find it, instead of what it found before.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    path = _survey_of(runs_dir, dataset, backbone)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_json(path, found)
    return path


def layer_survey(runs_dir: Path, dataset: str, backbone: str) -> dict[str, Any] | None:
    """Return what `layers` found of a data set and backbone; None where it was not run, or is damaged."""
    with suppress(RunError):
        return _read(_survey_of(runs_dir, dataset, backbone), json.loads)
    return None


def _survey_of(runs_dir: Path, dataset: str, backbone: str) -> Path:
    return runs_dir / SURVEYS / f"{file_safe(f'{dataset}-{backbone}')}.json"


def _put_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there whole, or as it was before."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _numbered(folder: Path, name: str, suffix: str = "") -> Iterator[Path]:
    """Yield a path, then the same with 2, 3 and so on behind its name."""
    yield folder / f"{name}{suffix}"
    yield from (folder / f"{name}-{number}{suffix}" for number in itertools.count(2))


def _is_free(path: Path, asked: Mapping[str, Any]) -> bool:
    """Tell whether there is nothing yet, or what these very settings gave."""
    if not path.is_file():
        return True
    with suppress(RunError):
        return _read(path, json.loads).get("asked") == json.loads(json.dumps(asked))
    return False


def save_evaluation(
    run: Run, name: str, predictions: Iterable[Sequence[Any]], figures: Mapping[str, Any]
) -> Path:
    """Keep what a run scores on other images in its folder, instead of what it scored on these before.

    Returns
    -------
    Path
        The table of predictions; the figures lie beside it as JSON.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    path = run.path / EVALUATIONS / f"{file_safe(name)}.csv"
    with _explained(path):
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(".new")
        _write_predictions(fresh, predictions)
        fresh.replace(path)
        _put_json(path.with_suffix(".json"), figures)
    return path


def learning_curves(runs_dir: Path, dataset: str, spec_sha256: str) -> list[dict[str, Any]]:
    """Return the learning curves that were drawn on these features, by head; files that are none are passed over."""
    found = []
    for path in sorted((runs_dir / CURVES).glob(f"{_curve_of(dataset, spec_sha256)}-*.json")):
        with suppress(RunError):
            found.append(_read(path, json.loads))
    return [one for one in found if {"head", "split", "points", "forecasts"} <= one.keys() and one["points"]
            and all({"n", "mean", "ci95"} <= point.keys() for point in one["points"])]  # fmt: skip


def _curve_of(dataset: str, spec_sha256: str) -> str:
    return f"{file_safe(dataset)}-{spec_sha256[:12]}"


def file_safe(name: str) -> str:
    """Return `name` as a folder's name: letters, digits, '.', '_' and '-' stay, the rest becomes '_'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "_"


@dataclass(frozen=True)
class RunPlace:
    """Where a run is written.

    Attributes
    ----------
    path : Path
    remark : str
        What becomes of an earlier run of that name, for the user; empty where there is none.
    """

    path: Path
    remark: str = ""


def place_for(path: Path, asked: Mapping[str, Any], overwrite: bool = False) -> RunPlace:
    """Return where a run goes so that no other run is lost: `path`, or the next free number behind its name.

    A run of the same settings is updated.

    Parameters
    ----------
    path : Path
        ``runs/<name>``.
    asked : mapping
        The settings that make it this run, as JSON values: ``asked`` in `metrics.json`.
    overwrite : bool
        Replace the run of that name, whatever it is.
    """
    place = next(place for place in _numbered(path.parent, path.name)
                 if overwrite or _is_free(place / "metrics.json", asked))  # fmt: skip
    if not (place / "metrics.json").is_file():
        taken = f"{path.name} has other settings and stays; this run is {place.name}. --overwrite would replace it."
        return RunPlace(place, taken if place != path else "")
    gone = " What it scored on other images is gone with it." if (place / EVALUATIONS).is_dir() else ""
    if _is_free(place / "metrics.json", asked):
        return RunPlace(place, f"{place.name} was there with the same settings, and is updated.{gone}")
    return RunPlace(place, f"{place.name} was replaced{_scored(place)}; it had other settings.{gone}")


@contextmanager
def claimed(path: Path, asked: Mapping[str, Any], overwrite: bool = False, wait: float = 0.0) -> Iterator[RunPlace]:
    """Be the one process that writes a run, at the place that `place_for` gives it.

    Parameters
    ----------
    path, asked, overwrite
        See `place_for`.
    wait : float
        Seconds that another process, which is writing this very run, is waited for.

    Raises
    ------
    BusyError
        If it still does.
    RunError
        If the folder cannot be written.
    """
    until = time.monotonic() + wait
    with ExitStack() as held:
        while True:
            place = place_for(path, asked, overwrite)
            try:
                held.enter_context(writing(place.path))
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            if place_for(path, asked, overwrite).path == place.path:
                break
            held.close()  # another process has just finished a run of that name
        yield place


def _scored(place: Path) -> str:
    """Return what a run scored, in brackets; nothing of one that cannot be read."""
    with suppress(RunError, KeyError, StopIteration):
        metrics = _read(place / "metrics.json", json.loads)
        split = split_of(metrics)
        return f" (accuracy {metrics['splits'][split]['accuracy']:.4f} on {split})"
    return ""


def write_run(
    path: Path,
    *,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    predictions: Iterable[Sequence[Any]],
    save_weights: Callable[[Path], object],
    remark: str = "",
) -> Run:
    """Write a run folder, replacing an older one of that name only once the new one is complete.

    Parameters
    ----------
    path : Path
        ``runs/<name>``.
    metrics, config : mapping
        Contents of `metrics.json` and `config.toml`.
    predictions : iterable of (filename, split, label, prediction, prob)
    save_weights : callable
        Writes the weights into the folder that it is given.
    remark : str
        See `Run`.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    import tomli_w

    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            save_weights(fresh)
            _write_predictions(fresh / "predictions.csv", predictions)
            (fresh / "config.toml").write_text(tomli_w.dumps({"format": FORMAT, **_without_none(config)}))
            (fresh / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
            _take_place(fresh, path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Run(path, dict(metrics), remark)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the one process that trains into and writes the run `path`.

    Raises
    ------
    BusyError
        If another process does so already.
    RunError
        If the folder cannot be written.
    """
    with _explained(path), hold(path.parent / f".{path.name}.lock", f"the run {path.name!r}"):
        yield


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"Cannot write the run {str(path)!r}: {reason}.") from error


def _take_place(fresh: Path, path: Path) -> None:
    """Put `fresh` where `path` is. A folder cannot be replaced in one step: the older one steps aside first."""
    for file in fresh.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    fresh.chmod(0o755)
    if not path.exists():
        fresh.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    path.rename(aside / path.name)
    fresh.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def prediction_rows(
    paths: Sequence[str], splits: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield the rows of `predictions.csv` from arrays of the same length N (probabilities: (N, K))."""
    best = probabilities.argmax(1)
    for index, path in enumerate(paths):
        label = classes[labels[index]] if labels[index] >= 0 else ""
        yield path, str(splits[index]), label, classes[best[index]], round(float(probabilities[index, best[index]]), 6)


def _write_predictions(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    # names that are no UTF-8 come out as the bytes that they are on disk
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _read(path: Path, parse: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Cannot read {str(path)!r}: {error}.") from error
    if not isinstance(content, dict):
        raise RunError(f"{str(path)!r} is not what a run holds.")
    return content


def _without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    """TOML knows no null: what was left to its default is left out."""
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _without_none(value)
        return [plain(one) for one in value] if isinstance(value, list) else value

    return {key: plain(value) for key, value in config.items() if value is not None}
