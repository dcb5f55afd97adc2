"""torchvision's own classification sets, by name: their files where they have files, else PNG files made once."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, UnknownNameError
from ..core.progress import Progress, silent
from .folders import list_folder
from .generated import ensure, is_whole
from .hymenoptera import OWN_DATA
from .listing import UNDECIDED, Samples, safe_name

# Split -> the settings that make torchvision give it. Sets without splits are split by content.
Splits = dict[str, dict[str, Any]]
_FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
_TWO: Splits = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Splits = {split: {"split": split} for split in ("train", "val", "test")}
_WHOLE: Splits = {UNDECIDED: {}}

SETS: dict[str, Splits] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _TWO),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _WHOLE),
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {**_THREE, "val": {"split": "valid"}},
    "Imagenette": {split: {"split": split} for split in ("train", "val")},
}


def list_torchvision(
    kind: str,
    cache_dir: Path,
    progress: Progress = silent,
    *,
    name: str = "",
    source: Callable[..., Any] | None = None,
) -> Samples:
    """List one of torchvision's sets, downloading it where it is not there yet.

    Parameters
    ----------
    kind : str
        A key of `SETS`.
    cache_dir : Path
        Downloads and PNG files go to its ``downloads`` folder; ``$PIPELINE_DATA`` is tried as torchvision's root first.
    progress : callable
        See `pipeline.core.progress`.
    name : str
        Of the data set; by default made from `kind`.
    source : callable, optional
        Instead of torchvision's class of that name.

    Raises
    ------
    UnknownNameError
        It is no classification set of torchvision's.
    DataError
        It is not there and cannot be downloaded.
    """
    if kind not in SETS:
        raise UnknownNameError("torchvision data set", kind, SETS)
    name = name or safe_name(f"torchvision-{kind}")
    folder, recipe = cache_dir / "downloads" / name, f"torchvision {kind} as PNG, 1"
    if not is_whole(folder, recipe, cache_dir, progress):
        source = source or _class(kind)
        if "loader" in inspect.signature(source).parameters:
            return _files(kind, source, name, cache_dir)
        ensure(
            folder,
            lambda fresh: _export(kind, source, fresh, cache_dir, progress),
            recipe=recipe,
            cache_dir=cache_dir,
            progress=progress,
        )
    samples = list_folder(folder, progress)
    samples.name = name
    return samples


def _class(kind: str) -> Callable[..., Any]:
    from torchvision import datasets

    return getattr(datasets, kind)


def _open(kind: str, source: Callable[..., Any], cache_dir: Path, **settings: Any) -> Any:
    """Return a torchvision data set from the user's own folder, else from ours, else downloaded to ours."""
    own = os.environ.get(OWN_DATA)
    root = cache_dir / "downloads" / "torchvision"
    with redirect_stdout(sys.stderr):  # torchvision reports on standard output, which is the command's own
        if own:
            try:
                return source(own, download=False, **settings)
            except (RuntimeError, OSError):
                pass
        try:
            root.mkdir(parents=True, exist_ok=True)
            return source(str(root), download=True, **settings)
        except Exception as error:  # URLError, RuntimeError, ImportError…, as many as there are sets
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"Cannot get torchvision's {kind}: {reason}. To do without a download, put what torchvision would "
                f"download into {root}, or name the folder that holds it in the variable {OWN_DATA}."
            ) from error


def _export(kind: str, source: Callable[..., Any], folder: Path, cache_dir: Path, progress: Progress) -> None:
    for split, settings in SETS[kind].items():
        opened = _open(kind, source, cache_dir, **settings)
        names = [safe.strip(". ") or "_" for safe in (name.replace("/", "_") for name in class_names(opened))]
        with progress(total=len(opened), desc=f"Writing {kind} {split}".strip(), unit="file") as bar:
            for number in range(len(opened)):
                image, label = opened[number]
                place = folder / split / names[int(label)]
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{number:06d}.png")
                bar.update(1)


def _files(kind: str, source: Callable[..., Any], name: str, cache_dir: Path) -> Samples:
    """List a set whose images are files already; its `loader` is asked for their paths instead of their pixels."""
    rows, names = [], []
    for split, settings in SETS[kind].items():
        opened = _open(kind, source, cache_dir, loader=os.fspath, **settings)
        names = class_names(opened)
        rows += [(*opened[number], split) for number in range(len(opened))]
    classes = tuple(sorted(names))
    place = {old: classes.index(label) for old, label in enumerate(names)}
    root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, _, _ in rows]))  # noqa: PTH100, PTH120
    return Samples(
        name=name,
        root=root,
        paths=[os.path.relpath(path, root).replace(os.sep, "/") for path, _, _ in rows],
        labels=np.array([place[int(label)] for _, label, _ in rows], np.int64),
        splits=np.array([split for _, _, split in rows], "<U5"),
        classes=classes,
    )


def class_names(opened: Any) -> list[str]:
    """Return the names of a torchvision set's classes in the order of its labels, no name twice."""
    given = getattr(opened, "classes", None) or getattr(opened, "categories", None)
    if given is None:
        labels = getattr(opened, "labels", None)
        given = range(int(max(labels if labels is not None else opened.targets)) + 1)
    names = [str(name if isinstance(name, str) or not isinstance(name, Sequence) else name[0]) for name in given]
    return list(_distinct(names))


def _distinct(names: list[str]) -> Iterator[str]:
    for number, name in enumerate(names):
        yield f"{name} {number}" if names.count(name) > 1 else name
