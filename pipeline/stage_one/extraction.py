"""Stage one: every image once through the frozen backbone, rows into the cache."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..backbones import DEFAULT, POOLED, Backbone, description, several
from ..core.errors import CacheError, DataError
from ..core.machine import installed
from ..core.progress import Progress, note, shown, silent
from ..data import DEFAULT_DATA, Dataset, Limits, on_disk
from ..data.augmentation import Views
from ..data.files import DEFAULT_LIMITS
from ..data.splits import SplitRule
from ..engines import Running
from ..engines.engine import accelerated
from ..store import CacheWriter, FeatureCache, Plan, cache_path
from ..store.disk import size
from .caches import backbone_of, load_named, with_views
from .computer import computer_of

TOLD_BYTES = 4e9  # from which on it is said beforehand
LIBRARIES = ("image-feature-pipeline", "torch", "torchvision", "timm", "openvino", "numpy", "pillow", "h5py")


def extract(
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    weights: str | Path | None = None,
    layer: str = POOLED,
    precision: str = "float32",
    seed: int = 0,
    views: int | Views | None = None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_duplicates: bool = False,
    rehash: bool = False,
    retry_failed: bool = False,
    part_rows: int | None = None,
    strict: bool = False,
    tell: Callable[[str], object] = note,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: str = "auto",
    scheduler: str | None = None,
    progress: Progress | bool = silent,
) -> Extraction:
    """Stage one: run a frozen backbone over a data set once, and cache its features.

    Parameters
    ----------
    data : str, Path, rows, frame, arrays or data set
        A name in `pipeline.data.DATASETS`, ``torchvision:NAME``, a folder, a CSV file, an archive, a URL; or what a
        program has in its hands: (path, label) rows, a DataFrame, arrays with labels, see `pipeline.data.given`.
    backbone, weights, layer, precision, seed
        See `pipeline.backbones.resolve`.
    views : int or Views, optional
        Of each image, the plain one and random ones: see `pipeline.data.augmentation.Views`. By default the plain one
        alone.
    val_fraction, test_fraction, group_duplicates, rehash, limits
        See `pipeline.data.load_dataset`.
    retry_failed, part_rows, scheduler
        See `pipeline.stage_one.extraction.extract_features`.
    batch_size, workers, device, engine
        See `pipeline.engines.Running`.
    strict : bool
        Make an image that cannot be read an error. All other rows are kept for the next run.
    tell : callable
        Takes a line for the user while the work goes on; by default it is logged, as all notes are.
    cache_dir : path-like
    dataset_name : str, optional
        By which the cache is filed; by default the folder's name, see `pipeline.stage_one.caches.load_named`.

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
    data = on_disk(data, cache_dir)
    progress = shown(progress)
    network = with_views(backbone_of(backbone, weights, layer, precision, seed, cache_dir=cache_dir), views)
    splitting = SplitRule(val_fraction, test_fraction, group_duplicates).to_dict()
    dataset = load_named(
        data, dataset_name, cache_dir=cache_dir, rehash=rehash, limits=limits, progress=progress, **splitting
    )
    done = extract_features(
        dataset, network, Running(device, engine, batch_size, workers), cache_dir=Path(cache_dir),
        retry_failed=retry_failed, part_rows=part_rows, scheduler=scheduler, progress=progress, tell=tell,
        origin={"data": data, **splitting, "limits": asdict(limits)},
    )  # fmt: skip
    for line in done.notes:
        note(line)
    if strict and done.skipped:
        with done.open() as cache:
            path, reason = cache.skipped[0]
        raise DataError(f"{done.skipped} files gave no image, the first: {path!r}: {reason}. The other rows are kept.")
    return done


@dataclass(frozen=True)
class Extraction:
    """What stage one did.

    Attributes
    ----------
    path : Path
        The cache file.
    spec_sha256 : str
    rows, computed, reused, skipped : int
        Images with features; forward passes made (one for all views of an image); images whose rows were there;
        images without features.
    seconds : float
        From start to end, the loading of the network included.
    images_per_second : float
        Of the forward passes; 0 where none was needed.
    notes : tuple of str
        Remarks for the user, one line each.
    """

    path: Path
    spec_sha256: str
    rows: int
    computed: int
    reused: int
    skipped: int
    seconds: float
    images_per_second: float
    notes: tuple[str, ...] = ()

    def open(self) -> FeatureCache:
        """Open the cache for reading."""
        return FeatureCache.open(self.path)


def extract_features(
    dataset: Dataset,
    backbone: Backbone,
    running: Running = Running(),
    *,
    cache_dir: Path = Path("cache"),
    retry_failed: bool = False,
    scheduler: str | None = None,
    part_rows: int | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    tell: Callable[[str], object] = note,
) -> Extraction:
    """Bring a data set's cache up to date: compute the rows that it lacks, and no others.

    Parameters
    ----------
    dataset : Dataset
    backbone : Backbone
    running : Running
    cache_dir : Path
    retry_failed : bool
        Try images again that gave none before.
    scheduler : str, optional
        Address of a Dask cluster whose workers compute, such as ``tcp://host:8786``, instead of this machine. They must
        have the same libraries and find the images under the same paths; how many threads run is theirs to say.
    part_rows : int, optional
        With more distinct images than these, the cache is made in parts; see `CacheWriter.open`.
    origin : mapping, optional
        How the data set was asked for, kept in the file's `meta` as JSON values.
    progress : Progress
    tell : callable
        Takes a line for the user: before more than a few GB are written, how many.

    Raises
    ------
    DataError
        If no image can be read, or one changes while it is being read.
    BusyError
        If another process is writing this cache.
    ClusterError
        If the cluster is gone or one of its workers is unfit. What is committed stays.
    """
    begin = time.perf_counter()
    path = cache_path(cache_dir, dataset.name, backbone.name, backbone.spec)
    earlier = _meta_so_far(path)
    with CacheWriter.open(path, backbone.spec, part_rows=part_rows, progress=progress) as writer:
        fast = scheduler is None and accelerated(running.device, running.engine)
        plan = writer.plan(dataset.digests, retry_failed=retry_failed, accelerated=fast)
        computed, seconds, remarks = 0, 0.0, list[str]()
        if plan.blocks:
            with progress(total=sum(map(len, plan.blocks)), desc="Extracting", unit="image") as bar:
                bar.set_postfix_str("preparing…")
                # the network is built, or the cluster reached, only now: a run that finds every row needs neither
                with computer_of(backbone, dataset, plan.blocks, running, scheduler, cache_dir) as computer:
                    if computer.row_bytes and (needed := writer.require_room(computer.row_bytes)) > TOLD_BYTES:
                        tell(f"{size(needed)} are going to be written below {path.parent}: "
                             f"{size(computer.row_bytes)} for each of {len(plan.to_compute):,} images, and their copy.")
                    bar.set_postfix_str("")
                    started = time.perf_counter()
                    computed = computer.compute(writer.commit, bar)
                    seconds = time.perf_counter() - started + computer.head_start
                    remarks += computer.notes
        # what an interrupted run computed took its time too
        total = float(earlier.get("seconds") or 0) + seconds * (1 + plan.resumed / max(computed, 1))
        with writer.finish(
            paths=dataset.paths, labels=dataset.labels, splits=dataset.splits, classes=dataset.classes,
            skipped=dataset.skipped, meta=_meta(dataset, backbone, origin, earlier), seconds=round(total, 3),
        ) as cache:
            rows, skipped = len(cache), cache.skipped
        notes = (*dataset.notes, *writer.notes, *_remarks(plan), *remarks)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise DataError(f"None of the {len(skipped)} files in {str(dataset.root)!r} is a readable image ({reasons}).")
    return Extraction(
        path, backbone.spec.sha256, rows, computed, plan.reused, len(skipped),
        time.perf_counter() - begin, computed / seconds if seconds else 0.0, notes,
    )


def _meta_so_far(path: Path) -> dict[str, Any]:
    """Return what the cache that is there says; the file itself is checked later."""
    try:
        with FeatureCache.open(path) as cache:
            return cache.meta
    except CacheError:
        return {}


def _meta(dataset: Dataset, backbone: Backbone, origin: Mapping[str, Any] | None, earlier: Mapping[str, Any]
          ) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    versions |= {library: found for library in LIBRARIES if (found := installed(library))}
    return {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "backbone": backbone.name,
        "label": backbone.label,
        "weights": backbone.weights.label,
        "description": description(backbone),
        **_columns(backbone, earlier),
        "origin": dict(origin or {}),
        "versions": versions,
    }


def _columns(backbone: Backbone, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of activations or the groups of columns; what the file said before, to save torch's import."""
    if known := {name: earlier[name] for name in ("shape", "groups") if name in earlier}:
        return known
    if not (backbone.storage or several(backbone.layer)):
        return {}
    from ..backbones.layers import columns

    return columns(backbone)


def _remarks(plan: Plan) -> list[str]:
    remarks = []
    if plan.resumed:
        remarks.append(f"Went on where an interrupted run stopped: {plan.resumed} rows were there.")
    if plan.duplicates:
        remarks.append(f"{plan.duplicates} images are byte for byte another's copy and share its row.")
    return remarks
