"""One step of training: parameter groups, mixing of images, the loss, the moving average of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .network import Classifier
from .settings import FinetuneSettings


def make_optimizer(model: Classifier, factors: Sequence[float], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Return an optimiser with one parameter group a block, and the head's group last.

    A group's `factor` is its share of the learning rate; frozen parameters have no gradient, which skips them.
    """
    groups = [
        {"params": list(block.parameters.values()), "factor": factor, "block": block.name}
        for block, factor in zip(model.blocks, factors, strict=True)
    ]
    groups.append({"params": list(model.head.parameters()), "factor": 1.0, "block": "head"})
    # one kernel for all parameters instead of a few for each: a large share of a small batch's time
    fused = model.head.weight.device.type in ("cpu", "cuda")
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=fused
    )


def set_rates(optimizer: torch.optim.Optimizer, rate: float, factors: Sequence[float]) -> None:
    """Give each block its factor of the learning rate `rate`, and the head all of it."""
    for group, factor in zip(optimizer.param_groups, (*factors, 1.0), strict=True):
        group["factor"] = factor
        group["lr"] = rate * factor


def class_weights(labels: np.ndarray, classes: int, kind: str) -> np.ndarray:
    """Return the (K,) float32 weight of each class in the loss; balanced ones average 1 over the images."""
    counts = np.bincount(labels, minlength=classes)
    if kind == "none":
        return np.ones(classes, np.float32)
    return (len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))).astype(np.float32)


class Targets:
    """What a batch's scores should be: each image's label, perhaps mixed with another's.

    Parameters
    ----------
    labels : (n,) int64 tensor
    weights : (K,) float32 tensor
        Of the classes.
    counted : (n,) float32 tensor
        0 for a row that only fills up, else 1.
    smoothing : float
    """

    def __init__(self, labels: torch.Tensor, weights: torch.Tensor, counted: torch.Tensor, smoothing: float):
        self.labels, self.weights, self.counted, self.smoothing = labels, weights, counted, smoothing
        self.others, self.share = labels, 1.0

    def total(self) -> torch.Tensor:
        """Return what the summed loss is divided by: the weight of all rows."""
        own, other = self.weights[self.labels], self.weights[self.others]
        return (self.counted * (self.share * own + (1 - self.share) * other)).sum()

    def loss(self, scores: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the summed weighted cross-entropy of some rows."""
        def each(labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(
                scores, labels[rows], self.weights, reduction="none", label_smoothing=self.smoothing
            )

        values = each(self.labels)
        if self.share < 1:
            values = self.share * values + (1 - self.share) * each(self.others)
        return (values * self.counted[rows]).sum()


def mix_images(
    images: torch.Tensor, targets: Targets, settings: FinetuneSettings, rng: np.random.Generator
) -> torch.Tensor:
    """Mix each image with another of the batch, and its target likewise.

    Source: mixup, Zhang et al. 2018; CutMix, Yun et al. 2019. Both draw the share from Beta(alpha, alpha).

    Parameters
    ----------
    images : (n, 3, H, W) tensor
    targets : Targets
        Changed in place.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(settings, kind) > 0]
    if not kinds or len(images) < 2:
        return images
    kind = kinds[int(rng.integers(len(kinds)))]
    share = float(rng.beta(getattr(settings, kind), getattr(settings, kind)))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if kind == "mixup":
        mixed = images.lerp(images[partner], 1 - share)
    else:
        mixed = images.clone()
        rows, columns = _box(images.shape[2], images.shape[3], 1 - share, rng)
        mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
        covered = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - covered / (images.shape[2] * images.shape[3])
    targets.others, targets.share = targets.labels[partner], share
    # a row that only fills up must not lend its label
    targets.counted = targets.counted * targets.counted[partner]
    return mixed


def _box(height: int, width: int, area: float, rng: np.random.Generator) -> tuple[slice, slice]:
    down, across = round(height * area**0.5), round(width * area**0.5)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    top, left = max(0, row - down // 2), max(0, column - across // 2)
    return slice(top, min(height, row + down - down // 2)), slice(left, min(width, column + across - across // 2))


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], decay: float) -> None:
    """Move an exponential moving average of weights one step, in place; counters are taken as they are."""
    floats = [name for name in average if average[name].is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floats], [tensors[name] for name in floats], 1 - decay)
    for name in average.keys() - set(floats):
        average[name].copy_(tensors[name])
