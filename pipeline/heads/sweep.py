"""Choosing a head's settings fairly: cross-validation on the training rows, or the validation rows, never the test."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.cluster import joblib_backend, require_same, versions
from ..core.errors import HeadError, PipelineError, known
from ..core.frames import frame
from ..core.progress import Progress, silent
from ..evaluation.metrics import balanced_accuracy, confusion_matrix, log_loss, macro_f1
from .base import Head
from .folds import Fold
from .registry import HEADS, make_head
from .rows import one_thread
from .scores import plain, probabilities

METRICS = {"accuracy": 1, "balanced_accuracy": 1, "macro_f1": 1, "log_loss": -1}  # 1: larger is better
FITS_VERSION = 2  # of what is kept about finished fits; 1 held penalties that had not been solved
UNREACHED = "the optimum was not reached"
Settings = dict[str, Any]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes
    ----------
    head : Head
        With the chosen settings, fitted on all training rows.
    settings : dict
        The chosen settings, those of the grid alone.
    selection : {'cv', 'val'}
        What they were chosen on.
    rows : list of dict
        One a candidate in the grid's order: its settings, the mean of each of `METRICS`, `error` (standard error of
        the metric chosen by), `seconds` (all its fits; of those that share work, what passed since the one before was
        done), `chosen`, and `reason`: empty, or why it has no figures (all None). Such a candidate cannot be chosen.
    choice : dict
        How it was chosen, as JSON values: `settings`, `candidates` (tried), `without_figures`, `in_reach` (of the
        best, itself included), `metric`, `rule`, `on`, `folds`.
    """

    head: Head
    settings: Settings
    selection: str
    rows: list[dict[str, Any]]
    choice: dict[str, Any]

    def to_frame(self) -> Any:
        """Return `rows` as a pandas data frame, a row a candidate."""
        return frame(self.rows)


def sweep_head(
    name: str, X: np.ndarray, y: np.ndarray, *, X_val: np.ndarray | None = None, y_val: np.ndarray | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None, fixed: Mapping[str, Any] | None = None, folds: int = 5,
    seed: int = 0, metric: str = "accuracy", one_standard_error: bool = False, n_jobs: int = -1,
    folder: Path | None = None, scheduler: str | None = None, progress: Progress = silent,
) -> SweepResult:
    """Try a grid of settings and fit the best on all training rows.

    Parameters
    ----------
    name : str
        A name in `HEADS`.
    X, y : (N, D) or (N, V, D) array, (N,) int array
        Training rows and their class ids. Of V views of each image all are trained on; candidates are scored on the
        plain view of images of which they saw none.
    X_val, y_val : arrays, optional
        Choose on these rows instead of by cross-validation; they are not trained on. Of the shape of `X` but for N.
    grid : mapping from setting to values, optional
        All combinations are tried. By default the head's own grid. Simplest values first: they win ties.
    fixed : mapping, optional
        Settings for all candidates, as `make_head` takes them.
    folds : int
        Of the stratified cross-validation; fewer where the largest class has fewer rows.
    seed : int
        Of the folds and of the heads.
    metric : str
        One of `METRICS`. Of the candidates within one standard error of the best the one with the least log loss
        is taken: what rows cannot tell apart by how many are right, they can by how sure they are.
    one_standard_error : bool
        Take the first candidate within one standard error of the best, as in CART.
    n_jobs : int
        Processes, or threads for heads that are quick in them; -1 is one a core.
    folder : Path, optional
        Where finished fits are kept, so that a killed sweep goes on where it stopped.
    scheduler : str, optional
        Address of a Dask cluster whose workers fit the candidates, instead of this machine; it takes `n_jobs` for all.
    progress : callable
        See `pipeline.core.progress`; counts fits.

    Returns
    -------
    SweepResult

    Raises
    ------
    HeadError
        For unknown settings or metrics, an empty grid, too few rows to choose on, or where no candidate has figures.
    """
    known("metric", metric, METRICS)
    candidates = combinations(HEADS[name].grid if grid is None else grid)
    head = make_head(name, seed=seed, **dict(fixed or {}))
    for one in candidates:
        for setting in one:
            known(f"setting of head {name!r}", setting, HEADS[name].settings)
    X, y = np.asarray(X), np.asarray(y)
    if X_val is None or y_val is None:
        task = _Task(head, X, y, candidates, cross_validation_folds(y, folds, seed), int(y.max()) + 1)
        selection = "cv"
    else:
        both = np.arange(len(y)), np.arange(len(y), len(y) + len(y_val))
        n_classes = int(max(y.max(), np.max(y_val))) + 1
        task = _Task(head, np.concatenate([X, X_val]), np.concatenate([y, y_val]), candidates, [both], n_classes)
        selection = "val"
    fits = run_fits(task, n_jobs, folder, progress, scheduler)
    rows = summarised(task, fits, metric)
    best = chosen(rows, metric, one_standard_error)
    rows[best]["chosen"] = True
    choice = {"settings": candidates[best], "candidates": len(rows),
              "without_figures": sum(bool(row["reason"]) for row in rows), "in_reach": len(in_reach(rows, metric)),
              "metric": metric, "rule": "simplest" if one_standard_error else "log_loss", "on": selection,
              "folds": len(task.folds)}
    return SweepResult(head.set_params(**candidates[best]).fit(X, y), candidates[best], selection, rows, choice)


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return all combinations of a grid's values, the last setting varying fastest; of an empty grid, one: {}."""
    if any(isinstance(values, str) or not len(values) for values in grid.values()):
        raise HeadError(f"The grid {dict(grid)!r} is not usable: each setting needs one value or more, in a list.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def cross_validation_folds(y: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """Return stratified (train, test) indices; a class of one row is in training only by chance."""
    from sklearn.model_selection import StratifiedKFold

    counts = np.unique(y, return_counts=True)[1]
    if folds < 2 or counts.max() < 2:
        raise HeadError(
            f"Cross-validation needs two folds and a class of two rows or more; there are {folds} folds, and the "
            f"largest class has {counts.max()} rows. Choose on validation rows, or give the settings."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class|The number of unique classes")
        splitter = StratifiedKFold(min(folds, int(counts.max())), shuffle=True, random_state=seed)
        return list(splitter.split(np.zeros(len(y)), y))


@dataclass(frozen=True)
class _Task:
    """Everything that the fits of one sweep need."""

    head: Head
    X: np.ndarray
    y: np.ndarray
    candidates: list[Settings]
    folds: list[Fold]
    n_classes: int

    def digest(self) -> str:
        """Return what tells this sweep from any other whose fits may lie in the same folder."""
        described = [FITS_VERSION, type(self.head).__name__, self.head.get_params(deep=False), self.n_classes,
                     self.X.shape, str(self.X.dtype)]
        digest = hashlib.sha256(json.dumps(described, default=str, sort_keys=True).encode())
        arrays = (self.X, self.y, *itertools.chain.from_iterable(self.folds))
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Fits:
    """Finished fits: scores by candidate and fold, one JSON line each in a file that a kill cannot spoil.

    Parameters
    ----------
    path : Path or None
        None keeps nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path

    def add(self, key: str, scores: Mapping[str, Any]) -> None:
        """Append one fit; a line is written at once, so processes may share the file."""
        if self.path is None:
            return
        line = json.dumps({"key": key, **scores}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise HeadError(f"{self.path} cannot be written: {error.strerror}.") from error

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the fits by key; a line that a kill cut short is left out."""
        if self.path is None or not self.path.exists():
            return {}
        found = {}
        for line in self.path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                numbers = ("n", "seconds") if entry["reason"] else (*METRICS, "n", "seconds")
                found[entry["key"]] = {"reason": str(entry["reason"]), **{name: float(entry[name]) for name in numbers}}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found


def run_fits(task: _Task, n_jobs: int, folder: Path | None, progress: Progress,
             scheduler: str | None = None) -> dict[tuple[int, int], Any]:
    """Fit every candidate on every fold, except those already kept; return scores by (candidate, fold)."""
    from joblib import Parallel, delayed

    fits = _opened(folder, task)
    keys = {(c, f): f"{json.dumps(one, default=str)} fold {f}" for c, one in enumerate(task.candidates)
            for f in range(len(task.folds))}
    kept = fits.read()
    results: dict[tuple[int, int], Any] = {place: kept[key] for place, key in keys.items() if key in kept}
    with _few_rows_expected(), progress(total=len(keys), desc="Sweep", unit="fit") as bar:
        bar.update(len(results))
        if len(results) == len(keys):
            return results
        if not scheduler:
            for place, entry in _fit_together(task, keys.keys() - results.keys()):
                fits.add(keys[place], entry)
                results[place] = entry
                bar.update(1)
        with (joblib_backend(scheduler, task) if scheduler else nullcontext()), one_thread():
            jobs = [[place for place in part if place not in results] for part in _parts(task, n_jobs)]
            ours = versions() if scheduler else {}
            calls = (delayed(_fit_on_worker)(ours, task, part, keys) if scheduler else
                     delayed(_fit_part)(task, part, fits, keys) for part in jobs if part)  # fmt: skip
            # worker processes take seconds to start; threads share the limit to BLAS and the filter, so both are here
            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1,
                                prefer=None if scheduler else "threads" if task.head.threads else "processes")
            for found in parallel(calls):
                for place in found if scheduler else ():
                    fits.add(keys[place], found[place])
                results |= found
                bar.update(len(found))
    return results


@contextmanager
def _few_rows_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        yield


def _opened(folder: Path | None, task: _Task) -> Fits:
    if folder is None:
        return Fits(None)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadError(f"{folder} cannot be written: {error.strerror}.") from error
    return Fits(Path(folder) / f"sweep-{task.digest()[:16]}.jsonl")


def _parts(task: _Task, n_jobs: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the fits into jobs: a fold's candidates together where a path shares work, unless cores would idle."""
    from joblib import effective_n_jobs

    paths = task.head.paths(task.candidates)
    pieces = len(paths)
    if type(task.head).fit_path is not Head.fit_path:
        pieces = min(pieces, max(1, -(-2 * effective_n_jobs(n_jobs) // len(task.folds))))
    for fold in range(len(task.folds)):
        for part in np.array_split(np.arange(len(paths)), pieces):
            yield [(candidate, fold) for path in part for candidate in paths[path]]


def _fit_together(task: _Task, places: Set[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Fit those places whose folds share their work, with all cores."""
    for path in task.head.paths(task.candidates):
        settings = [task.candidates[candidate] for candidate in path]
        wanted = [[at for at, candidate in enumerate(path) if (candidate, fold) in places]
                  for fold in range(len(task.folds))]
        if not any(wanted) or not task.head.fits_folds_together(task.X, task.y, task.folds, settings):
            continue
        held_out = [plain(task.X[test]) for _, test in task.folds]
        with one_thread():
            started = time.perf_counter()
            for fold, at, head in task.head.fit_folds(task.X, task.y, task.folds, settings, wanted):
                yield (path[at], fold), _entry(task, head, fold, held_out[fold], started)
                started = time.perf_counter()


def _entry(task: _Task, head: Head, fold: int, held_out: np.ndarray, started: float) -> dict[str, Any]:
    """Return what is kept of a fit that was begun at `started`."""
    labels = task.y[task.folds[fold][1]]
    entry: dict[str, Any] = {"n": len(labels), "reason": "" if getattr(head, "converged_", True) else UNREACHED}
    if not entry["reason"]:
        entry |= _scored(labels, probabilities(head, held_out, task.n_classes))
    return entry | {"seconds": time.perf_counter() - started}


def _fit_part(task: _Task, places: list[tuple[int, int]], fits: Fits,
              keys: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], dict[str, Any]]:
    """Fit candidates of one fold in turn."""
    train, test = task.folds[places[0][1]]
    results: dict[tuple[int, int], dict[str, Any]] = {}
    with one_thread():
        X, y, held_out = task.X[train], task.y[train], plain(task.X[test])
        started = time.perf_counter()
        heads = task.head.fit_path(X, y, [task.candidates[candidate] for candidate, _ in places])
        for place, head in zip(places, _explained(heads, task, places), strict=True):
            results[place] = _entry(task, head, place[1], held_out, started)
            fits.add(keys[place], results[place])
            started = time.perf_counter()
    return results


def _fit_on_worker(theirs: Mapping[str, str], task: _Task, places: list[tuple[int, int]],
                   keys: Mapping[tuple[int, int], str]) -> dict[tuple[int, int], dict[str, Any]]:
    """Do the same on a cluster's worker, which writes nothing."""
    from joblib import parallel_config

    require_same(theirs)
    try:
        with parallel_config("sequential"):  # or what a fit runs in parallel would become tasks of the cluster
            return _fit_part(task, places, Fits(None), keys)
    except PipelineError as error:
        raise HeadError(str(error)) from None  # a type that can travel


def _scored(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return the metrics to choose by; without intervals, which take longer than a small fit."""
    counts = confusion_matrix(labels, found.argmax(axis=1), found.shape[1])
    return {"accuracy": float(counts.trace() / len(labels)), "macro_f1": macro_f1(counts),
            "balanced_accuracy": balanced_accuracy(counts), "log_loss": log_loss(labels, found)}


def _explained(heads: Iterable[Head], task: _Task, places: list[tuple[int, int]]) -> Iterator[Head]:
    """Pass heads on; an error says which settings it happened with."""
    done = 0
    try:
        for head in heads:
            done += 1
            yield head
    except PipelineError as error:
        raise HeadError(f"With the settings {task.candidates[places[done][0]]}: {error}") from error


def summarised(task: _Task, fits: Mapping[tuple[int, int], Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return a row a candidate, means over folds weighted by their rows; no figures where a fold has none."""
    rows = []
    for index, candidate in enumerate(task.candidates):
        found = [fits[index, fold] for fold in range(len(task.folds))]
        reason = next((one["reason"] for one in found if one["reason"]), "")
        figures: dict[str, Any] = dict.fromkeys((*METRICS, "error"))
        if not reason:
            sizes = np.array([one["n"] for one in found])
            figures = {name: float(np.average([one[name] for one in found], weights=sizes)) for name in METRICS}
            figures["error"] = _standard_error([one[metric] for one in found], figures["accuracy"], sizes)
        seconds = sum(one["seconds"] for one in found)
        rows.append({**candidate, **figures, "seconds": seconds, "chosen": False, "reason": reason})
    return rows


def _standard_error(scores: Sequence[float], accuracy: float, sizes: np.ndarray) -> float:
    """Return the standard error of a mean over folds; of one held-out set, that of its accuracy."""
    if len(scores) > 1:
        return float(np.std(scores, ddof=1) / np.sqrt(len(scores)))
    return float(np.sqrt(accuracy * (1 - accuracy) / sizes[0]))


def chosen(rows: Sequence[Mapping[str, Any]], metric: str, one_standard_error: bool) -> int:
    """Return the index of the candidate to take; see `sweep_head`."""
    near = in_reach(rows, metric)
    if one_standard_error:
        return near[0]
    return min(near, key=lambda i: (rows[i]["log_loss"], -METRICS[metric] * rows[i][metric], i))


def in_reach(rows: Sequence[Mapping[str, Any]], metric: str) -> list[int]:
    """Return the indices of the candidates within one standard error of the best, the best one's."""
    sign, full = METRICS[metric], [i for i, row in enumerate(rows) if row[metric] is not None]
    if not full:
        raise HeadError(f"No candidate can be chosen: {rows[0]['reason']}. Give a grid of stronger penalties.")
    best = max(full, key=lambda i: (sign * rows[i][metric], -rows[i]["log_loss"], -i))
    enough = sign * rows[best][metric] - rows[best]["error"]
    return [i for i in full if sign * rows[i][metric] >= enough]
