"""What fine-tuning returns, how a set of weights is scored, and the linear probe that some strategies start from.

Linear probing before fine-tuning is Kumar et al.'s: "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..backbones import Backbone
from ..backbones.weights import Weights
from ..core.errors import DataError
from ..core.progress import Progress, silent
from ..data import Dataset
from ..data.device_resize import Ready
from ..data.preprocessing import Preprocessing
from ..engines import Embedder, TorchEngine
from ..heads import make_head
from ..heads.scores import softmax
from .activations import CachedActivations
from .batches import grouped
from .network import Classifier

EVALUATION_BATCH = {"cpu": 8}  # on a CPU the temporaries of larger batches cost page faults at every layer
SPLITS = ("train", "val", "test")
JOB = 64  # images handed to a worker at once, at least
Features = tuple[np.ndarray, np.ndarray, dict[int, str]]
"""Indices of the readable images, their features, and the reasons of the others by index."""
UNSEEN = -10.0  # the score of a class without training images lies this far below the others'


@dataclass(frozen=True)
class Scores:
    """Predictions for the readable, labelled images of one split.

    Attributes
    ----------
    indices : (n,) int array
        In the data set.
    probabilities : (n, K) float64 array
    """

    indices: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned network.

    Attributes
    ----------
    backbone : Backbone
        The one that was given, with the weights as they are now.
    state : dict of str to torch.Tensor
        Those weights, on the CPU, with buffers: they fit ``backbone.architecture.skeleton()``.
    weight, bias : (K, D) and (K,) float32 arrays
        The head.
    history : list of dict
        For each epoch `epoch`, `lr`, `train_loss`, `train_accuracy` (while training), `val_loss`, `val_accuracy`
        (where there are val images), `seconds`, `images_per_second`, and `waited`: the seconds in which training
        waited for images to be decoded. Epoch 0 is the solved probe.
    best_epoch : int
        The epoch whose weights were kept.
    selection : {'val', 'last'}
        How it was chosen. Its own validation accuracy is optimistic after `val`.
    scores : dict of str to Scores
        For each split that has labelled images.
    failures : dict of str to str
        Path and reason of every image that could not be read. They took no part.
    trainable_parameters : int
        The head's included.
    seconds : float
        Of training and validation, summed over interruptions; without the scoring of the final weights.
    precision, device : str
        Of the arithmetic in training.
    mix : float or None
        Of `interpolate`: the share of the fine-tuned weights that was best on val.
    """

    backbone: Backbone
    state: dict[str, torch.Tensor]
    weight: np.ndarray
    bias: np.ndarray
    history: list[dict[str, Any]]
    best_epoch: int
    selection: str
    scores: dict[str, Scores]
    failures: dict[str, str]
    trainable_parameters: int
    seconds: float
    precision: str
    device: str
    mix: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def with_weights(backbone: Backbone, state: dict[str, torch.Tensor]) -> Backbone:
    """Return `backbone` with other weights, identified by their content."""
    return replace(backbone, weights=Weights.from_state("fine-tuned", state))


def features_of(
    embedder: Embedder, backbone: Backbone, dataset: Dataset, indices: np.ndarray,
    tick: Callable[[int], object] = lambda n: None,
) -> Features:  # fmt: skip
    """Compute features of some images on all cores.

    Returns
    -------
    (n,) int array, (n, D) array, dict
        Indices of the readable images, their features, and the reasons of the others by index.
    """

    preprocess = embedder.preprocess(Preprocessing(backbone.transform))

    def pixels(index: int) -> Ready:
        return preprocess(dataset.read(index), dataset.limits)

    size = max(JOB, embedder.batch_size)
    jobs = [indices[start : start + size] for start in range(0, len(indices), size)]
    parts = list(embedder.map(lambda job: embedder.embed(job, pixels, tick), jobs))
    failures = {index: reason for _, failed in parts for index, reason in failed.items()}
    rows = [rows for rows, _ in parts] or [np.empty((0, embedder.engine.features), np.float32)]
    return np.array([index for index in indices if int(index) not in failures], int), np.concatenate(rows), failures


def labelled(dataset: Dataset, split: str) -> np.ndarray:
    """Return the indices of a split's labelled images."""
    return np.flatnonzero((dataset.splits == split) & (dataset.labels >= 0))


def score(
    backbone: Backbone, weight: np.ndarray, bias: np.ndarray, dataset: Dataset, device: str, workers: int,
    progress: Progress = silent,
) -> tuple[dict[str, Scores], dict[int, str]]:
    """Predict every labelled image, in the very way that a saved classifier does later.

    Raises
    ------
    DataError
        If no image of a split could be read.
    """
    embedder = Embedder(TorchEngine(backbone, device), workers=workers or None)
    return _scored(partial(features_of, embedder, backbone, dataset), weight, bias, dataset, progress)


def _scored(
    features: Callable[..., Features], weight: np.ndarray, bias: np.ndarray, dataset: Dataset, progress: Progress
) -> tuple[dict[str, Scores], dict[int, str]]:
    """Predict every labelled image of what `features` returns for indices and what is told how many are done."""
    splits = {split: found for split in SPLITS if len(found := labelled(dataset, split))}
    scores: dict[str, Scores] = {}
    failures: dict[int, str] = {}
    with progress(total=sum(map(len, splits.values())), desc="score", unit="image") as bar:
        for split, indices in splits.items():
            readable, rows, failed = features(indices, bar.update)
            failures |= failed
            if not len(readable):
                raise DataError(f"None of the {len(indices)} {split} images in {dataset.root} can be read "
                                f"({next(iter(failed.values()))}).")
            scores[split] = Scores(readable, softmax(rows.astype(np.float64) @ weight.T.astype(np.float64) + bias))
    return scores, failures


@torch.no_grad()
def features_above(
    model: Classifier, activations: CachedActivations, indices: np.ndarray, tick: Callable[[int], object]
) -> Features:
    """Compute features of some images, in float32, from the cached activations of their plain views.

    Returns
    -------
    (n,) int array, (n, D) array, dict
        As `features_of` does.
    """
    model.eval()
    device = model.head.weight.device
    size = EVALUATION_BATCH.get(device.type, 64)
    rows, found = [np.empty((0, model.head.in_features), np.float32)], [np.empty(0, int)]
    groups = grouped(indices, size)
    for group, batch in zip(groups, activations.batches(groups), strict=True):
        if len(batch.indices):
            rows.append(model.features(model.prepared(batch.inputs.to(device))).float().cpu().numpy())
            found.append(batch.indices)
        tick(len(group))
    failures = {index: activations.failures[index] for index in indices.tolist() if index in activations.failures}
    return np.concatenate(found), np.concatenate(rows), failures


def score_above(
    model: Classifier, activations: CachedActivations, weight: np.ndarray, bias: np.ndarray, dataset: Dataset,
    progress: Progress = silent,
) -> tuple[dict[str, Scores], dict[int, str]]:
    """Predict every labelled image from its cached activations, in float32; see `score`."""
    return _scored(partial(features_above, model, activations), weight, bias, dataset, progress)


def solve_probe(dataset: Dataset, readable: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve logistic regression on the frozen features (n, D) of the readable training images (n,).

    Returns
    -------
    (K, D) array, (K,) array
        Weight and bias for raw features.
    """
    labels = dataset.labels[readable]
    if len(np.unique(labels)) < 2:
        raise DataError(f"The readable training images in {dataset.root} are of one class; two are needed.")
    return linear_part(make_head("logistic").fit(rows, labels), len(dataset.classes))


def linear_part(head, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a linear head's weight (K, D) and bias (K,) for raw features, one row for each of K class ids.

    Parameters
    ----------
    head : LinearModel
        Fitted on class ids; its `coef_` and `intercept_` are for raw features.
    classes : int
        K. Classes that the head never saw get a score that always loses.
    """
    weight = np.zeros((classes, head.coef_.shape[1]))
    bias = np.full(classes, float(head.intercept_.min()) + UNSEEN)
    weight[head.classes_] = head.coef_
    bias[head.classes_] = head.intercept_
    return weight, bias
