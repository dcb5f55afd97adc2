"""What the commands do, one function each. Everything they need comes as arguments; nothing is printed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backbones import DEFAULT, POOLED, Backbone, resolve_again
from .budget import memory_limit, must_stream
from .certainty import Calibration, calibrated
from .comparison import compared
from .data import DEFAULT_DATA, Limits, load_dataset
from .data.reader import DEFAULT_LIMITS
from .data.views import Views
from .errors import CacheError, DataError, PipelineError
from .estimating import Estimate, estimate_extraction
from .extraction import Extraction, extract_features
from .fitting import Sweep, fit_head
from .lookup import find_cache
from .progress import Progress, silent
from .runs import Run, file_safe, list_runs, save_learning_curve, writing
from .scoring import SPLITS, save_finetuned, save_head_run
from .store import FeatureCache, open_caches

if TYPE_CHECKING:
    from .finetuning import FinetuneSettings

Features = str | Path | Sequence[str | Path]


def extract(
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    weights: str | Path | None = None,
    layer: str = POOLED,
    precision: str = "float32",
    seed: int = 0,
    views: int | Views | None = None,
    val_fraction: float | None = None,
    rehash: bool = False,
    retry_failed: bool = False,
    part_rows: int | None = None,
    strict: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    scheduler: str | None = None,
    progress: Progress = silent,
) -> Extraction:
    """Stage one: run a frozen backbone over a data set once, and cache its features.

    Parameters
    ----------
    data : str
        A name in `pipeline.data.DATASETS`, ``torchvision:NAME``, a folder, or a CSV file.
    backbone, weights, layer, precision, seed
        See `pipeline.backbones.resolve`.
    views : int or Views, optional
        Of each image, the plain one and random ones: see `pipeline.data.views.Views`. By default the plain one alone.
    val_fraction, rehash, limits
        See `pipeline.data.load_dataset`.
    retry_failed, part_rows, batch_size, workers, device, engine, scheduler
        See `pipeline.extraction.extract_features`.
    strict : bool
        Make an image that cannot be read an error. All other rows are kept for the next run.
    cache_dir : path-like

    Returns
    -------
    Extraction
        Its `path` is the HDF5 file.

    Raises
    ------
    PipelineError
        For whatever the user can mend.

    Examples
    --------
    >>> import pipeline
    >>> with pipeline.extract("photos/").open() as cache:    # doctest: +SKIP
    ...     X, y = cache.split("train")
    """
    network = with_views(backbone_of(backbone, weights, layer, precision, seed, cache_dir=cache_dir), views)
    dataset = load_dataset(
        data, cache_dir=cache_dir, val_fraction=val_fraction, rehash=rehash, limits=limits, progress=progress
    )
    done = extract_features(
        dataset, network, cache_dir=Path(cache_dir), batch_size=batch_size, workers=workers, device=device,
        engine=engine, retry_failed=retry_failed, part_rows=part_rows, scheduler=scheduler, progress=progress,
        origin={"data": data, "val_fraction": val_fraction, "limits": asdict(limits)},
    )  # fmt: skip
    if strict and done.skipped:
        with done.open() as cache:
            path, reason = cache.skipped[0]
        raise DataError(f"{done.skipped} files gave no image, the first: {path!r}: {reason}. The other rows are kept.")
    return done


def estimate(
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    views: int | Views | None = None,
    val_fraction: float | None = None,
    rehash: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    progress: Progress = silent,
    **running: Any,
) -> Estimate:
    """Tell what `extract` would take: images, seconds, disk, memory, and what would be reused.

    Images are listed and hashed, and their digests remembered, as `extract` would; nothing else is written.

    Parameters
    ----------
    data, backbone, views, val_fraction, rehash, limits, cache_dir
        See `extract`.
    **running
        Its retry_failed, batch_size, workers, device, engine; and machines, to tell what so many would take.
    """
    network = with_views(backbone_of(backbone, cache_dir=cache_dir), views)
    dataset = load_dataset(
        data, cache_dir=cache_dir, val_fraction=val_fraction, rehash=rehash, limits=limits, progress=progress
    )
    return estimate_extraction(dataset, network, cache_dir=Path(cache_dir), progress=progress, **running)


def backbone_of(
    backbone: str | Backbone, weights: str | Path | None = None, layer: str = POOLED, precision: str = "float32",
    seed: int = 0, *, cache_dir: str | Path | None = None,
) -> Backbone:  # fmt: skip
    """Return a backbone given by name or as one; with `cache_dir`, what the name meant is remembered there."""
    if isinstance(backbone, Backbone):
        return backbone
    remembered = None if cache_dir is None else Path(cache_dir)
    return resolve_again(backbone, weights, layer, precision, seed, cache_dir=remembered)


def with_views(backbone: Backbone, views: int | Views | None) -> Backbone:
    """Return a backbone that is given so many views of each image; None leaves it as it is."""
    return backbone if views is None else replace(backbone, views=views if isinstance(views, Views) else Views(views))


def train_head(
    head: str = "logistic",
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    tta: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None,
    repeats: int = 1,
    calibration: Calibration | None = None,
    max_memory: int | None = None,
    scheduler: str | None = None,
    name: str | None = None,
    cache_dir: str | Path = "cache",
    runs_dir: str | Path = "runs",
    progress: Progress = silent,
) -> Run:
    """Stage two: train a head on cached features, score it on every split, and save both.

    Parameters
    ----------
    head : str
        A name in `pipeline.heads.HEADS`.
    data, backbone
        Which cache: as they were given to `extract`.
    features : path-like or sequence of them, optional
        A cache file, instead of those; of several, the features of the same images side by side.
    views : int or Views, optional
        As they were given to `extract`. The head learns from all views of the training images: heads trained by epochs
        from one of each image an epoch, others from all at once. What chooses settings or epochs is the plain one.
    tta : bool
        Score by probabilities averaged over the views.
    settings : mapping, optional
        The head's own settings; see `pipeline.heads.make_head`.
    seed : int
    sweep, repeats, max_memory, scheduler
        See `pipeline.fitting.fit_head`. A killed sweep goes on where it stopped.
    calibration : Calibration, optional
        Make probabilities honest, and learn to say "I don't know"; see `pipeline.certainty`.
    name : str, optional
        Of the run; by default from data set, backbone and head.

    Returns
    -------
    Run

    Raises
    ------
    CacheError
        If there is no cache for this, or the images changed since.
    """
    with opened(features, data, backbone, cache_dir, progress, views) as cache:
        return _train(
            cache, head, settings or {}, seed, sweep, repeats, calibration, Path(runs_dir), tta, name,
            max_memory=max_memory, scheduler=scheduler, progress=progress,
        )  # fmt: skip


def _train(
    cache: FeatureCache, head: str, settings: Mapping[str, Any], seed: int, sweep: Sweep | None, repeats: int,
    calibration: Calibration | None, runs_dir: Path, tta: bool, name: str | None = None, jobs: int = -1,
    max_memory: int | None = None, scheduler: str | None = None, progress: Progress = silent,
) -> Run:  # fmt: skip
    if calibration and must_stream(cache, max_memory):
        raise CacheError(f"{cache.path} does not fit into memory, and calibration takes all training rows at once. "
                         "Leave --calibrate out, or raise --max-memory.")
    folder = runs_dir.absolute() / ".sweeps" if sweep else None  # worker processes may stand in another folder
    fitted = fit_head(
        cache, head, settings, seed, sweep=sweep, repeats=repeats, tta=tta, max_memory=max_memory, folder=folder,
        jobs=jobs, scheduler=scheduler, progress=progress,
    )  # fmt: skip
    if calibration:
        fitted = calibrated(cache, fitted, calibration)
    return save_head_run(cache, fitted, runs_dir, name)


def train_heads(
    heads: Sequence[str],
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    tta: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    sweep: Sweep | None = None,
    repeats: int = 1,
    calibration: Calibration | None = None,
    max_memory: int | None = None,
    scheduler: str | None = None,
    cache_dir: str | Path = "cache",
    runs_dir: str | Path = "runs",
    progress: Progress = silent,
) -> list[Run]:
    """Train several heads, one a core; see `train_head`. Each takes those of the settings that it has.

    Sweeps, and heads whose rows are streamed, go one after the other, each on all cores.
    """
    from joblib import Parallel, delayed, effective_n_jobs

    from .heads import HEADS

    wanted = settings or {}
    for key in wanted:
        if not any(key in HEADS[name].settings for name in heads):
            raise PipelineError(f"None of the heads has a setting {key!r}.")
    jobs = [(name, {key: wanted[key] for key in wanted if key in HEADS[name].settings}) for name in heads]
    place = Path(runs_dir)
    with opened(features, data, backbone, cache_dir, progress, views) as cache:
        most = memory_limit(max_memory)
        each = most // effective_n_jobs(-1)
        if sweep or must_stream(cache, each):
            return [_train(cache, name, own, seed, sweep, repeats, calibration, place, tta, max_memory=most,
                           scheduler=scheduler, progress=progress)
                    for name, own in jobs]  # fmt: skip
        paths, place = [path.absolute() for path in cache.sources], place.absolute()
    with progress(total=len(jobs), desc="Training", unit="head") as bar:
        runs = []
        for run in Parallel(n_jobs=-1, return_as="generator_unordered")(
            delayed(_train_in_process)(paths, name, own, seed, repeats, calibration, place, tta, each)
            for name, own in jobs
        ):
            runs.append(run)
            bar.update(1)
    return runs


def _train_in_process(
    paths: Sequence[Path], name: str, settings: Mapping[str, Any], seed: int, repeats: int,
    calibration: Calibration | None, runs_dir: Path, tta: bool, max_memory: int,
) -> Run:  # fmt: skip
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), open_caches(paths) as cache:
        return _train(cache, name, settings, seed, None, repeats, calibration, runs_dir, tta, jobs=1,
                      max_memory=max_memory)


def learning_curve(
    heads: Sequence[str] = ("logistic",),
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    cache_dir: str | Path = "cache",
    runs_dir: str | Path = "runs",
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Return accuracy against the number of training images, and what twice as many would give.

    Each head's curve is kept below ``<runs_dir>/learning-curves``, where reports on these features find it.

    Parameters
    ----------
    heads : sequence of str
        Names in `pipeline.heads.HEADS`.
    data, backbone, features, views
        See `train_head`.
    **options
        Sizes or shots, repeats, settings, seed: see `pipeline.learning_curve.learning_curve`.

    Returns
    -------
    dict
        `split`, `points`, `forecasts`, and `notes` for the user.
    """
    from .learning_curve import as_values, fewer_than_asked
    from .learning_curve import learning_curve as curve

    with opened(features, data, backbone, cache_dir, progress, views) as cache:
        found = as_values(*curve(cache, heads, progress=progress, **options))
        for head in heads:
            own = {key: [one for one in found[key] if one["head"] == head] for key in ("points", "forecasts")}
            save_learning_curve(Path(runs_dir), cache.meta["dataset"], cache.spec.sha256,
                                {"head": head, "split": found["split"], **own})
        fewer = fewer_than_asked(cache.labels[cache.indices("train")], options.get("sizes"), options.get("shots"))
        return {**found, "notes": [*cache.notes, *fewer]}


@contextmanager
def opened(
    features: Features | None, data: str, backbone: str | Backbone, cache_dir: str | Path, progress: Progress,
    views: int | Views | None = None,
) -> Iterator[FeatureCache]:  # fmt: skip
    """Open the cache that was named, or the one that belongs to a data set and a backbone."""
    if features is not None:
        cache = open_caches([features] if isinstance(features, (str, Path)) else features)
    else:
        network = with_views(backbone_of(backbone, cache_dir=cache_dir), views)
        cache = find_cache(data, network, cache_dir=cache_dir, progress=progress)
    with cache:
        if views is not None and cache.views != (asked := views.count if isinstance(views, Views) else views):
            raise CacheError(f"{cache.path} holds {cache.views} views of each image, not {asked}.")
        if lacking := [key for key in ("dataset", "root", "backbone", "label", "description") if key not in cache.meta]:
            raise CacheError(f"{cache.path} was not made by `extract`: its 'meta' lacks {', '.join(lacking)}.")
        yield cache


def finetune(
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    settings: FinetuneSettings | None = None,
    *,
    name: str | None = None,
    resume: bool = False,
    val_fraction: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    runs_dir: str | Path = "runs",
    progress: Progress = silent,
    log: Callable[[str], object] = lambda line: None,
) -> Run | None:
    """Retrain the whole network, or part of it, and score it as a head is scored.

    Parameters
    ----------
    data, val_fraction, limits, cache_dir
        See `pipeline.data.load_dataset`.
    backbone : str or Backbone
    settings : FinetuneSettings, optional
        Strategy, epochs, optimiser and so on; by default the tutorial's.
    name : str, optional
        Of the run; by default from data set, backbone and strategy.
    resume : bool
        Go on from the run's last checkpoint.
    log : callable
        Takes a line an epoch.

    Returns
    -------
    Run or None
        None in all processes but the first, where several train together.

    Raises
    ------
    BusyError
        If another process is training this run.
    PipelineError
        For whatever the user can mend.
    """
    from .finetuning import STRATEGIES, FinetuneSettings, train

    settings = settings or FinetuneSettings()
    network = backbone_of(backbone).plain
    dataset = load_dataset(data, cache_dir=cache_dir, val_fraction=val_fraction, limits=limits, progress=progress)
    path = Path(runs_dir) / file_safe(name or f"{dataset.name}-{network.label}-{settings.strategy}")
    first = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    with writing(path) if first else nullcontext():
        probe, extract_seconds = None, 0.0
        if STRATEGIES[settings.strategy].probe and first:
            probe, extract_seconds = _probe(data, network, val_fraction, Path(cache_dir), settings, progress)
        result = train(
            dataset, network, settings, run_folder=path, resume=resume, probe=probe, progress=progress, log=log
        )
        if result is None:
            return None
        origin = {"name": dataset.name, "root": str(dataset.root), "data": data, "val_fraction": val_fraction}
        return save_finetuned(result, dataset, settings, path, origin, extract_seconds, network.label)


def _probe(
    data: str, backbone: Backbone, val_fraction: float | None, cache_dir: Path, settings: FinetuneSettings,
    progress: Progress,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, float]:  # fmt: skip
    """Solve logistic regression on cached features, extracting them first if need be; None where a class is absent."""
    done = extract(data, backbone, val_fraction=val_fraction, cache_dir=cache_dir, device=settings.device,
                   progress=progress)
    with done.open() as cache:
        head: Any = fit_head(cache, "logistic", {}, settings.seed).head
        complete = len(head.classes_) == len(cache.classes)
        return ((head.coef_, head.intercept_) if complete else None), float(cache.meta.get("seconds") or 0)


def compare(
    data: str | None = None, *, baseline: str | None = None, runs_dir: str | Path = "runs"
) -> list[dict[str, Any]]:
    """Return the metrics of all runs, those of one data set together, the most accurate first.

    Each gets a field ``split``: the one it is sorted by, test where there is one, else val, else train; and
    ``versus_best`` or, if there is a baseline for its data set, ``versus_baseline``: paired tests on the images of
    that split which both predicted, see `pipeline.comparison.compared`.

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
    found = {}
    for run in list_runs(Path(runs_dir)):
        dataset = run.config().get("dataset", {})
        if data is None or data in (dataset.get("name"), dataset.get("data"), dataset.get("root")):
            found[run.name] = run
    if not found:
        what = f" of {data!r}" if data else ""
        raise PipelineError(f"No runs{what} in {str(runs_dir)!r}: run `pipeline train-head` or `finetune` first.")
    runs = ranked({**run.metrics, "name": name} for name, run in found.items())
    rows = {run["name"]: found[run["name"]].predictions(run["split"]) for run in runs}
    return compared(runs, rows, Run.open(baseline, Path(runs_dir)).name if baseline else None)


def audit(
    data: str = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    features: Features | None = None,
    views: int | Views | None = None,
    runs: Sequence[str] | None = None,
    threshold: float | None = None,
    sheets: str | Path | None = None,
    seed: int = 0,
    cache_dir: str | Path = "cache",
    runs_dir: str | Path = "runs",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Look for what makes scores of a data set untrustworthy, on cached features alone.

    Parameters
    ----------
    data, backbone, features, views
        Which cache, as for `train_head`. Of several views the plain one is looked at.
    runs : sequence of str, optional
        Names of runs to score again without the leaked images; all runs of this data set by default.
    threshold : float, optional
        Cosine from which two images count as nearly the same; see `pipeline.auditing`.
    sheets : path-like, optional
        Folder for the contact sheets; ``<runs_dir>/audit-<data set>`` by default.

    Returns
    -------
    dict
        Plain values: those of `pipeline.auditing.Audit.to_dict`, ``runs`` (see its `Rescored`), ``sheets``.
    """
    from .auditing import NEAR, audit_cache, rescore, write_sheets

    with opened(features, data, backbone, cache_dir, progress, views) as cache:
        found = audit_cache(cache, threshold=NEAR if threshold is None else threshold, seed=seed)
        folder = Path(sheets) if sheets else Path(runs_dir) / f"audit-{found.dataset}"
        chosen = list_runs(Path(runs_dir)) if runs is None else [Run.open(name, Path(runs_dir)) for name in runs]
        if runs is None:
            chosen = [run for run in chosen if run.metrics["dataset"] == found.dataset
                      and tuple(run.metrics["classes"]) == cache.classes]
        return {
            **found.to_dict(), "notes": [*cache.notes, *found.notes],
            "runs": [scored.to_dict() for scored in rescore(cache, found, chosen)],
            "sheets": [str(path) for path in write_sheets(found, cache, folder)],
        }


def ranked(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return metrics of runs with the field ``split`` that they are sorted by, as `compare` does."""
    split_of = [{**run, "split": next(name for name in reversed(SPLITS) if name in run["splits"])} for run in runs]
    return sorted(split_of, key=lambda run: (run["dataset"], -run["splits"][run["split"]]["accuracy"], run["name"]))
