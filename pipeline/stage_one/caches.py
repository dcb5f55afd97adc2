"""The cache that belongs to a data set and a backbone: found, compared with the images, checked, removed."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones import DEFAULT, POOLED, STORAGES, Backbone, from_description, resolve_again
from ..core.errors import CacheError, PipelineError, suggestion
from ..core.progress import Progress, silent
from ..data import Dataset, Limits, load_dataset, place, read_bytes
from ..data.augmentation import Views
from ..data.digests import digest_files, memo_file
from ..data.splits import SplitRule
from ..engines import Embedder, Running
from ..runs.run import list_runs
from ..store import FeatureCache, cache_path, list_caches, nearest, open_caches, roots, verify_cache
from ..store.catalog import CacheEntry, superseded, unused
from ..store.layout import as_keys
from ..store.spec import ABSENT

MADE_BY_EXTRACT = ("dataset", "root", "backbone", "label", "description")  # what its `meta` has
Features = str | Path | Sequence[str | Path]
Sample = tuple[bytes, str | None, str]
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3, "int8": 5e-2}  # of ‖difference‖ / ‖row‖, by precision
ROUNDED = 1e-3  # what keeping activations in float16 adds


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


def load_named(
    data: str, name: str | None = None, *, cache_dir: str | Path = "cache", **how: Any
) -> Dataset:
    """Load a data set under a name that no other images' caches have.

    Parameters
    ----------
    data, cache_dir, **how
        See `pipeline.data.load_dataset`.
    name : str, optional
        By default the folder's. Where caches of that name describe another folder, which is still there and has other
        images for the most part, the name of the folder above is put before it, or a number behind it.
    """
    dataset = load_dataset(data, cache_dir=cache_dir, **how)
    return replace(dataset, name=name or _name_for(dataset, Path(cache_dir)))


def _name_for(dataset: Dataset, cache_dir: Path) -> str:
    name, root = dataset.name, dataset.root
    if not isinstance(root, Path) or root.absolute().is_relative_to(cache_dir.absolute()):
        return name  # a URL tells itself apart, and what this program made has a name of its own
    above = root.absolute().parent.name
    others, numbers = [name, *([f"{above}-{name}"] if above else [])], itertools.count(2)
    while True:
        for other in others:
            if any(there == str(root) for there, _ in roots(cache_dir, other)):  # the first one tells, as a rule
                return other
        for other in others:
            if not any(Path(there).exists() and not _alike(path, dataset) for there, path in roots(cache_dir, other)):
                return other
        others.append(f"{name}-{next(numbers)}")


def _alike(path: Path, dataset: Dataset) -> bool:
    """Tell whether half of a cache's images, or more, are in a data set: then that is a copy, perhaps changed since."""
    try:
        with FeatureCache.open(path) as cache:
            return len(cache) == 0 or np.isin(as_keys(cache.digests), as_keys(dataset.digests)).mean() >= 0.5
    except CacheError:
        return True  # it is mended by whoever extracts


@dataclass(frozen=True)
class CacheChoice:
    """Which cache: the files that are named, or the one that belongs to a data set and a backbone.

    Attributes
    ----------
    data : str
    backbone : str or Backbone
        As they were given to `extract`.
    features : path-like or sequence of them, optional
        Cache files, instead of those; of several, the features of the same images side by side.
    views : int or Views, optional
        As they were given to `extract`.
    cache_dir : path-like
    dataset_name : str, optional
        See `load_named`.
    """

    data: str
    backbone: str | Backbone
    features: Features | None = None
    views: int | Views | None = None
    cache_dir: str | Path = "cache"
    dataset_name: str | None = None

    @contextmanager
    def opened(self, progress: Progress = silent) -> Iterator[FeatureCache]:
        """Open it for the length of a `with` block.

        Raises
        ------
        CacheError
            If there is none, it is out of date, or `extract` did not make it.
        """
        if self.features is not None:
            cache = open_caches([self.features] if isinstance(self.features, (str, Path)) else self.features)
        else:
            network = with_views(backbone_of(self.backbone, cache_dir=self.cache_dir), self.views)
            cache = find_cache(self.data, network, self.dataset_name, cache_dir=self.cache_dir, progress=progress)
        with cache:
            asked = self.views.count if isinstance(self.views, Views) else self.views
            if asked not in (None, cache.views):
                raise CacheError(f"{cache.path} holds {cache.views} views of each image, not {asked}.")
            if lacking := [key for key in MADE_BY_EXTRACT if key not in cache.meta]:
                raise CacheError(f"{cache.path} was not made by `extract`: its 'meta' lacks {', '.join(lacking)}.")
            yield cache


def find_cache(
    data: str, backbone: Backbone, name: str | None = None, *, cache_dir: str | Path = "cache",
    progress: Progress = silent,
) -> FeatureCache:  # fmt: skip
    """Open the cache of a data set under a backbone. It says the same as the images do now, or this raises.

    Raises
    ------
    CacheError
        If there is none (the nearest one and the fields in which it differs are named), or images, labels or
        splits changed since (the first few are named).
    """
    dataset = load_named(data, name, cache_dir=cache_dir, progress=progress)
    path = cache_path(Path(cache_dir), dataset.name, backbone.name, backbone.spec)
    if not path.exists():
        raise CacheError(_missing(Path(cache_dir), data, dataset, backbone, name))
    cache = FeatureCache.open(path, spec=backbone.spec)
    origin = cache.meta.get("origin", {})
    rule, limits = SplitRule.of(origin), Limits(**origin.get("limits", {}))
    if (rule, limits) != (SplitRule(), dataset.limits):
        dataset = load_named(
            data, dataset.name, cache_dir=cache_dir, limits=limits, progress=progress, **rule.to_dict()
        )
    if changed := changes(cache, dataset):
        cache.close()
        raise CacheError(
            f"{path} is out of date: {changed}. Run `{extract_command(data, backbone, cache_dir, name)}` again: "
            "only new content takes a forward pass."
        )
    return cache


def changes(cache: FeatureCache, dataset: Dataset) -> str:
    """Tell in what a data set differs from its cache: one clause a kind of change, empty if there is none."""
    columns = ("digests", "labels", "splits")
    if (
        cache.classes == dataset.classes
        and all(np.array_equal(getattr(cache, name), getattr(dataset, name)) for name in columns)
        and cache.paths == dataset.paths
    ):
        return ""  # as it should be; what follows takes memory for each image
    then = dict(_samples(cache.paths, cache.digests, cache.labels, cache.splits, cache.classes))
    now = dict(_samples(dataset.paths, dataset.digests, dataset.labels, dataset.splits, dataset.classes))
    skipped = {path for path, _ in cache.skipped}
    both = [path for path in now if path in then]
    found = {
        "new": [path for path in now if path not in then and path not in skipped],
        "gone": [path for path in then if path not in now],
        "with other content": [path for path in both if then[path][0] != now[path][0]],
        "with another label or split": [
            path for path in both if then[path][0] == now[path][0] and then[path] != now[path]
        ],
    }
    return ", ".join(f"{len(paths)} images {kind} ({_first(paths)})" for kind, paths in found.items() if paths)


def extract_command(
    data: str, backbone: Backbone, cache_dir: str | Path = "cache", dataset_name: str | None = None
) -> str:
    """Return the command that brings this cache up to date."""
    words = ["pipeline", "extract", "--data", data]
    options = {
        "--backbone": (backbone.name, DEFAULT),
        "--weights": (backbone.weights.label, (*backbone.architecture.tags, None)[0]),
        "--layer": (backbone.layer, POOLED),
        "--precision": (backbone.precision, "float32"),
        "--cache-dir": (str(cache_dir), "cache"),
        "--dataset-name": (dataset_name, None),
    }
    for option, (value, default) in options.items():
        words += [option, str(value)] if value != default else []
    words += ["--fast-decode"] if backbone.fast_decode else []
    words += ["--decoder", backbone.decoder] if backbone.decoder != "pillow" else []
    words += ["--resize", str(backbone.resize)] if backbone.resize else []
    words += ["--keep-shape"] if backbone.storage else []
    words += ["--storage", backbone.storage] if backbone.storage not in ("", STORAGES[0]) else []
    return shlex.join([*words, *backbone.views.flags])


def _samples(paths: Sequence[str], digests, labels, splits, classes: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    for path, digest, label, split in zip(paths, digests, labels.tolist(), splits.tolist(), strict=True):
        yield path, (digest.tobytes(), classes[label] if label >= 0 else None, split)


def _first(paths: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(repr, paths[:most])) + (", …" if len(paths) > most else "")


def _missing(cache_dir: Path, data: str, dataset: Dataset, backbone: Backbone, name: str | None) -> str:
    text = f"No features of {data!r} under {backbone.name} in {str(cache_dir)!r}."
    if close := nearest(cache_dir, dataset.name, backbone.spec):
        path, differences = close
        if all(field.startswith("views.") for field, _, _ in differences):
            text += f" {_other_views(differences, backbone.views)}"
        else:
            fields = "; ".join(f"{field} is {theirs!r} there, {ours!r} asked for"
                               for field, theirs, ours in differences)
            text += f" The nearest is {path.name}: {fields}."
    return f"{text} Run `{extract_command(data, backbone, cache_dir, name)}` first."


def _other_views(differences: Sequence[tuple[str, Any, Any]], asked: Views) -> str:
    """Tell how to ask for the features that are there, which differ from those asked for in their views alone."""
    theirs = {field: value for field, value, _ in differences}
    if theirs.get("views.count") == ABSENT:
        return f"There are plain ones, but none with {asked.label}: without --views they are used."
    places = {"count": "views.count", "augmentation": "views.augmentation.name", "seed": "views.seed"}
    there = Views(**{name: theirs.get(field, getattr(asked, name)) for name, field in places.items()})
    return f"There are some with {there.label} ({shlex.join(there.flags)}), none with {asked.label or 'plain images'}."


@dataclass
class Verified:
    """What checking one cache gave.

    Attributes
    ----------
    path : Path
    problems : list of str
        Empty if all is well.
    recomputed : int
        Images that went through the backbone again.
    deviation : float or None
        The largest ‖recomputed − cached‖ / ‖cached‖ among them.
    unavailable : int
        Images that were chosen but are gone or have other content by now: no fault of the cache.
    """

    path: Path
    problems: list[str] = field(default_factory=list)
    recomputed: int = 0
    deviation: float | None = None
    unavailable: int = 0


def verify(
    paths: Sequence[Path] = (), *, cache_dir: Path = Path("cache"), recompute: int = 0, device: str = "auto",
    seed: int | None = None, progress: Progress = silent,
) -> list[Verified]:  # fmt: skip
    """Check caches to the last bit, and some of their rows against the images that they came from.

    Parameters
    ----------
    paths : sequence of Path
        Cache files; all below `cache_dir` by default.
    recompute : int
        How many random images of each to run through the backbone again.
    seed : int, optional
        Of the choice; by default another one each time, so that repeated checks see more of the cache.

    Raises
    ------
    CacheError
        If there is no cache to verify, or one that was named is not there.
    """
    for path in paths:
        _require_cache(path, cache_dir)
    # what was set aside is known to be damaged, and no run reads it
    chosen = list(paths) or [entry.path for entry in list_caches(cache_dir) if entry.path.suffix == ".h5"]
    if not chosen:
        raise CacheError(f"No caches in {str(cache_dir)!r}: run `pipeline extract` first.")
    reports = []
    for path in chosen:
        report = Verified(path, verify_cache(path, progress))
        if recompute and not report.problems:
            with FeatureCache.open(path) as cache:
                _recompute(cache, report, recompute, device, np.random.default_rng(seed), progress)
        reports.append(report)
    return reports


def _require_cache(path: Path, cache_dir: Path) -> None:
    """Refuse a name that is no file; one that is, damaged or not, is for whoever called to judge."""
    if not path.is_file():
        known = [str(entry.path) for entry in list_caches(cache_dir)]
        raise CacheError(f"There is no cache {str(path)!r}.{suggestion(str(path), known)}")


def _recompute(
    cache: FeatureCache, report: Verified, count: int, device: str, rng: np.random.Generator, progress: Progress
) -> None:
    rows = np.sort(rng.choice(len(cache), min(count, len(cache)), replace=False))
    root, paths = place(cache.meta["root"]), [cache.paths[row] for row in rows]
    digests, _ = digest_files(root, paths, memo=memo_file(cache.path.parent.parent), rehash=True)
    same = (digests == cache.digests[rows]).all(axis=1)
    report.unavailable = int((~same).sum())
    rows, paths = rows[same], [path for path, unchanged in zip(paths, same, strict=True) if unchanged]
    if not len(rows):
        return
    backbone = from_description(cache.meta["description"], cache.path.parent)
    embedder = Embedder.of(backbone, Running(device, "torch"))
    with progress(total=len(rows), desc="Recomputing", unit="image") as bar:
        found, failures = embedder.embed(
            range(len(rows)), lambda index: backbone.pixels(read_bytes(root / paths[index])), bar.update,
            backbone.views.count,
        )
    kept = [index for index in range(len(rows)) if index not in failures]
    report.problems += [f"row {rows[index]} ({paths[index]!r}): {reason}" for index, reason in failures.items()]
    cached = cache.read_rows(rows[kept]).astype(np.float64)
    deviations = np.linalg.norm(found - cached, axis=-1) / np.maximum(np.linalg.norm(cached, axis=-1), 1e-12)
    deviations = deviations.reshape(len(kept), -1).max(axis=1, initial=0)  # over the views of an image
    report.recomputed, report.deviation = len(kept), float(deviations.max(initial=0))
    bound = TOLERANCE[backbone.precision] + (ROUNDED if cache.dtype == np.float16 else 0)
    report.problems += [
        f"row {rows[kept[index]]} ({paths[kept[index]]!r}) deviates by {deviations[index]:.2g}, more than {bound:g}"
        for index in np.flatnonzero(deviations > bound)
    ]


def removable(
    paths: Sequence[Path] = (), *, cache_dir: Path = Path("cache"), runs_dir: Path = Path("runs"),
    keep_newest: bool = False, superfluous: bool = False,
) -> list[CacheEntry]:  # fmt: skip
    """Return the caches that `cache rm` removes.

    Parameters
    ----------
    paths : sequence of Path
        These files.
    keep_newest : bool
        All that is not the newest complete cache of its data set and backbone.
    superfluous : bool
        All complete caches that no run in `runs_dir` was trained on.

    Raises
    ------
    CacheError
        If a file is no cache below `cache_dir`.
    PipelineError
        If nothing was asked for.
    """
    entries = list_caches(cache_dir)
    if not (paths or keep_newest or superfluous):
        raise PipelineError("Name the caches to remove, or give --keep-newest or --unused (--dry-run shows which).")
    found = {entry.path.resolve(): entry for entry in entries}
    for path in paths:
        _require_cache(path, cache_dir)
    if strangers := [str(path) for path in paths if path.resolve() not in found]:
        raise CacheError(f"Not a cache in {str(cache_dir)!r}: {', '.join(strangers)}. `pipeline cache ls` lists them.")
    chosen = [found[path.resolve()] for path in paths]
    if keep_newest:
        chosen += superseded(entries)
    if superfluous:
        used = [(run.metrics["dataset"], sha256) for run in list_runs(runs_dir) for sha256 in run.features]
        chosen += unused(entries, used)
    return list(dict.fromkeys(chosen))
