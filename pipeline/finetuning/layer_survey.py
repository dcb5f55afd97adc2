"""Where to cut: what each layer's features are worth, and what training above it would take."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backbones import DEFAULT, POOLED, STORAGES, Backbone
from ..backbones.cuts import Flow
from ..core.errors import CacheError, PipelineError, UnknownNameError
from ..core.progress import Progress, shown, silent
from ..data import DEFAULT_DATA, Limits, on_disk
from ..data.files import DEFAULT_LIMITS
from ..engines import choose_device
from ..evaluation.metrics import evaluate
from ..heads import make_head
from ..heads.folds import out_of_fold_scores, some_of
from ..runs.run import save_layer_survey
from ..stage_one.caches import backbone_of, extract_command
from ..stage_one.extraction import extract
from ..store import FeatureCache
from .convolutions import quick_convolutions
from .cutting import Place, cut_places, lowest_of_half
from .network import Classifier, autocast, choose_precision

MOST_ROWS = 3000  # train images that probes are trained and left out of
SAMPLE = 16  # images of a timed step
STEPS = 3  # timed, after one that is not; the fastest counts
SLOWER = 1.1  # times the seconds, and still as good as no slower


@dataclass(frozen=True)
class CutSurvey:
    """A place where the network can be cut, and what training above it takes and promises.

    Attributes
    ----------
    unfreeze : str
        The first block above it, as ``--unfreeze`` takes it; empty for the pooled features, above which is the head.
    layer : str
        Whose output is cached.
    shape : tuple of int
        Of that output for one image.
    kilobytes : float
        Of an image and view, in the cache.
    gigabytes : float
        Of one view of all images.
    share : float
        Of the network's multiply-adds that lie above.
    seconds : float
        Of an epoch, on this machine, by a sample of steps: reading and validation not counted.
    accuracy, accuracy_ci95
        Of logistic regression on the layer's mean and maximum over positions, on train images left out in turn.
    dominated : bool
        Whether a cut further below takes no more disk and, within a tenth, no more time.
    command : str
        That trains above it.
    """

    unfreeze: str
    layer: str
    shape: tuple[int, ...]
    kilobytes: float
    gigabytes: float
    share: float
    seconds: float
    accuracy: float
    accuracy_ci95: tuple[float, float]
    dominated: bool
    command: str


@dataclass(frozen=True)
class LayerSurvey:
    """All places where a network can be cut, from the input to the output.

    Attributes
    ----------
    dataset, backbone : str
    images, train : int
        In all, and those of train: what an epoch goes through.
    probed : int
        Train images that the probes were scored on.
    whole_seconds : float
        Of an epoch of the whole network, decoding not counted.
    device, precision : str
        Where and how steps were timed.
    cuts : list of CutSurvey
    auto : str
        What ``--unfreeze auto`` takes.
    path : Path
        Of the features, with all layers side by side.
    """

    dataset: str
    backbone: str
    images: int
    train: int
    probed: int
    whole_seconds: float
    device: str
    precision: str
    cuts: list[CutSurvey]
    auto: str
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "path": str(self.path)}


def survey_layers(
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    *,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_duplicates: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    storage: str = "float16",
    seed: int = 0,
    progress: Progress | bool = silent,
) -> LayerSurvey:
    """Tell for each place where a network can be cut what training above it would take, and what a probe scores there.

    Every layer's output is pooled in one extraction. Labels of train alone are used.

    Parameters
    ----------
    data, backbone, val_fraction, test_fraction, group_duplicates, limits, cache_dir, dataset_name
        See `pipeline.extract`.
    runs_dir : path-like
        Where reports find the result.
    device : str
        That steps are timed on.
    storage : str
        Of activations: ``float16`` or ``float32``.
    seed : int
        Of the images that are sampled, and of those left out.

    Raises
    ------
    PipelineError
        If the network cannot be cut, or there is nothing to learn from.
    """
    data = on_disk(data, cache_dir)
    progress = shown(progress)
    plain = backbone_of(backbone).plain
    if plain.layer != POOLED:
        raise PipelineError(f"All layers are looked at: leave --layer {plain.layer} out.")
    if storage not in STORAGES:
        raise UnknownNameError("storage", storage, STORAGES)
    places = cut_places(plain)
    layers = "+".join([*(f"{place.layer}:meanmax" for place in places[:-1]), POOLED])
    done = extract(data, replace(plain, layer=layers), val_fraction=val_fraction,
                   test_fraction=test_fraction, group_duplicates=group_duplicates, limits=limits, cache_dir=cache_dir,
                   dataset_name=dataset_name, device=device, progress=progress)
    with done.open() as cache:
        probes = _probed(cache, seed, progress)
        train = len(cache.indices("train"))
        count, name, classes = len(cache), str(cache.meta["dataset"]), len(cache.classes)
    where = choose_device(device)
    rates = _timed(plain, places, classes, where, progress)
    size = np.dtype(storage).itemsize
    command = extract_command(data, plain, cache_dir, dataset_name).replace("extract", "finetune --cached", 1)
    found = [
        CutSurvey(place.unfreeze, place.layer, place.shape, prod(place.shape) * size / 1e3,
                  count * prod(place.shape) * size / 1e9, place.share, train / rates[place.layer],
                  *probes[place.layer], False, f"{command} {_flag(place.unfreeze)}")
        for place in places
    ]
    found = [replace(cut, dominated=_is_dominated(cut, found[:number])) for number, cut in enumerate(found)]
    precision = str(choose_precision("auto", where)).removeprefix("torch.")
    survey = LayerSurvey(name, plain.label, count, train, min(train, MOST_ROWS), train / rates[""], str(where),
                         precision, found, lowest_of_half(places), done.path)
    save_layer_survey(Path(runs_dir), name, plain.name, survey.to_dict())
    return survey


def _flag(unfreeze: str) -> str:
    return shlex.join(["--unfreeze", unfreeze] if unfreeze else ["--strategy", "head-only"])


def _is_dominated(cut: CutSurvey, below: Sequence[CutSurvey]) -> bool:
    return any(other.kilobytes <= cut.kilobytes and other.seconds <= SLOWER * cut.seconds for other in below)


def _probed(cache: FeatureCache, seed: int, progress: Progress
            ) -> dict[str, tuple[float, tuple[float, float]]]:
    """Return the accuracy of logistic regression on each layer, on train images left out in turn, and its interval."""
    rows = some_of(cache.indices("train"), MOST_ROWS, seed)
    codes = np.unique(cache.labels[rows], return_inverse=True)[1]
    if np.bincount(codes, minlength=2).min() < 2:
        raise CacheError(f"{cache.path} has too few labelled training images for probes: two of each of two classes "
                         "are needed.")
    X, start, found = cache.read_rows(rows), 0, {}
    with progress(total=len(cache.meta["groups"]), desc="Probing", unit="layer") as bar:
        for group in cache.meta["groups"]:
            own = np.ascontiguousarray(X[:, start : start + group["columns"]])
            start += group["columns"]
            scores = out_of_fold_scores(partial(_probe, own, codes, _penalty(own, codes, seed)), codes, seed)
            assert scores is not None  # every class has two rows, for mypy
            figures = evaluate(codes, scores)
            low, high = figures["accuracy_ci95"]
            found[group["layer"].removesuffix(":meanmax")] = float(figures["accuracy"]), (float(low), float(high))
            bar.update(1)
    return found


def _penalty(X: np.ndarray, codes: np.ndarray, seed: int) -> float:
    return float(vars(make_head("logistic", seed=seed).fit(X, codes))["C_"])


def _probe(X: np.ndarray, codes: np.ndarray, C: float, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return make_head("logistic", C=C).fit(X[train], codes[train]).predict_proba(X[test])


def _timed(
    backbone: Backbone, places: Sequence[Place], classes: int, device: torch.device, progress: Progress
) -> dict[str, float]:
    """Return how many images a second training takes above each cut, and, under the empty name, of the whole."""
    network = backbone.network()
    precision = choose_precision("auto", device)
    model = Classifier(network, places[-1].shape[0], classes, backbone.transform)
    model.placed(device, precision)
    flow, names, rates = Flow(network.network, backbone.transform.crop), [block.name for block in model.blocks], {}
    labels = torch.arange(SAMPLE, device=device) % classes
    whole = Place(names[0], "", (), 1.0)
    with progress(total=len(places) + 1, desc="Timing", unit="cut") as bar:
        for place in [whole, *places]:
            if place.layer:
                model.cut(place.layer, place.shape, flow)
                inputs = torch.randn(SAMPLE, prod(place.shape), device=device).half()
            else:
                inputs = torch.randint(0, 256, (SAMPLE, *backbone.transform.crop, 3), dtype=torch.uint8, device=device)
            first = names.index(place.unfreeze) if place.unfreeze else len(names)
            factors = [float(number >= first) for number in range(len(names))]
            model.unfreeze(factors)
            model.training_mode(factors, freeze_norm=True)
            optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.0, momentum=0.9)
            taken = []
            for _ in range(STEPS + 1):
                begin = time.perf_counter()
                optimizer.zero_grad()
                with autocast(device, precision), quick_convolutions(device):
                    scores = model(model.prepared(inputs))
                nn.functional.cross_entropy(scores, labels).backward()
                optimizer.step()
                _wait(device)
                taken.append(time.perf_counter() - begin)
            rates[place.layer] = SAMPLE / min(taken[1:])  # other work on the machine only ever adds
            bar.update(1)
    return rates


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
