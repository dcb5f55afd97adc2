"""Finding the cache that belongs to a data set and a backbone, and making sure that it is up to date."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .backbones import DEFAULT, POOLED, Backbone
from .data import Dataset, Limits, load_dataset
from .data.views import Views
from .errors import CacheError
from .progress import Progress, silent
from .store import FeatureCache, cache_path, nearest
from .store.spec import ABSENT

Sample = tuple[bytes, str | None, str]


def find_cache(
    data: str, backbone: Backbone, *, cache_dir: str | Path = "cache", progress: Progress = silent
) -> FeatureCache:
    """Open the cache of a data set under a backbone. It says the same as the images do now, or this raises.

    Raises
    ------
    CacheError
        If there is none (the nearest one and the fields in which it differs are named), or images, labels or
        splits changed since (the first few are named).
    """
    dataset = load_dataset(data, cache_dir=cache_dir, progress=progress)
    path = cache_path(Path(cache_dir), dataset.name, backbone.name, backbone.spec)
    if not path.exists():
        raise CacheError(_missing(Path(cache_dir), data, dataset, backbone))
    cache = FeatureCache.open(path, spec=backbone.spec)
    origin = cache.meta.get("origin", {})
    val_fraction, limits = origin.get("val_fraction"), Limits(**origin.get("limits", {}))
    if (val_fraction, limits) != (None, dataset.limits):
        dataset = load_dataset(
            data, cache_dir=cache_dir, val_fraction=val_fraction, limits=limits, progress=progress
        )
    if changed := changes(cache, dataset):
        cache.close()
        raise CacheError(
            f"{path} is out of date: {changed}. Run `{extract_command(data, backbone)}` again: "
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


def extract_command(data: str, backbone: Backbone) -> str:
    """Return the command that brings this cache up to date."""
    words = ["pipeline", "extract", "--data", data]
    options = {
        "--backbone": (backbone.name, DEFAULT),
        "--weights": (backbone.weights.label, (*backbone.architecture.tags, None)[0]),
        "--layer": (backbone.layer, POOLED),
        "--precision": (backbone.precision, "float32"),
    }
    for option, (value, default) in options.items():
        words += [option, value] if value != default else []
    words += ["--fast-decode"] if backbone.fast_decode else []
    words += ["--decoder", backbone.decoder] if backbone.decoder != "pillow" else []
    words += ["--resize", str(backbone.resize)] if backbone.resize else []
    return shlex.join([*words, *backbone.views.flags])


def _samples(paths: Sequence[str], digests, labels, splits, classes: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    for path, digest, label, split in zip(paths, digests, labels.tolist(), splits.tolist(), strict=True):
        yield path, (digest.tobytes(), classes[label] if label >= 0 else None, split)


def _first(paths: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(repr, paths[:most])) + (", …" if len(paths) > most else "")


def _missing(cache_dir: Path, data: str, dataset: Dataset, backbone: Backbone) -> str:
    text = f"No features of {data!r} under {backbone.name} in {str(cache_dir)!r}."
    if close := nearest(cache_dir, dataset.name, backbone.spec):
        path, differences = close
        if all(field.startswith("views.") for field, _, _ in differences):
            text += f" {_other_views(differences, backbone.views)}"
        else:
            fields = "; ".join(f"{field} is {theirs!r} there, {ours!r} asked for"
                               for field, theirs, ours in differences)
            text += f" The nearest is {path.name}: {fields}."
    return f"{text} Run `{extract_command(data, backbone)}` first."


def _other_views(differences: Sequence[tuple[str, Any, Any]], asked: Views) -> str:
    """Tell how to ask for the features that are there, which differ from those asked for in their views alone."""
    theirs = {field: value for field, value, _ in differences}
    if theirs.get("views.count") == ABSENT:
        return f"There are plain ones, but none with {asked.label}: without --views they are used."
    places = {"count": "views.count", "augmentation": "views.augmentation.name", "seed": "views.seed"}
    there = Views(**{name: theirs.get(field, getattr(asked, name)) for name, field in places.items()})
    return f"There are some with {there.label} ({shlex.join(there.flags)}), none with {asked.label or 'plain images'}."
