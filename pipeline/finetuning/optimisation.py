"""One optimiser step: learning rates over time, parameter groups, mixing of images, the loss, gradients in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import PipelineError
from ..engines.cuda_graphs import record
from .batches import Batch
from .capture import MOST_IMAGES, WARM, Recordings
from .convolutions import quick_convolutions
from .distributed import World
from .network import Classifier, autocast
from .settings import FinetuneSettings

# of one-cycle, as torch's OneCycleLR: the share of the time that the rate rises, where it starts, where it ends
RISE, START, END = 0.3, 1 / 25, 1 / 250_000
LOOK_EVERY = 50  # steps between looks at the loss on an accelerator, where each look waits for it
# what torch says on a CPU: its allocator, and oneDNN, whose kernels are built when they are first used
NO_MEMORY = ("allocate memory", "could not create a primitive", "could not create a memory")
Place = tuple[int, int]  # epoch and step, from 0


def rate_factor(settings: FinetuneSettings, done: float) -> float:
    """Return the factor of the learning rate after `done` epochs (a fraction within an epoch), from 0 to 1."""
    share = done / settings.epochs
    if settings.schedule == "step":
        factor = settings.gamma ** (int(done) // settings.step_size)
    elif settings.schedule == "cosine":
        factor = _eased(1.0, 0.0, share)
    elif settings.schedule == "one-cycle":
        factor = _eased(START, 1.0, share / RISE) if share < RISE else _eased(1.0, END, (share - RISE) / (1 - RISE))
    else:
        factor = 1.0
    return factor * min(1.0, done / settings.warmup) if settings.warmup else factor


def _eased(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + cos(pi * share)) / 2


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


class Stepper:
    """Takes steps, and sums up what they showed.

    Parameters
    ----------
    model : Classifier
        On its device.
    optimizer : torch.optim.Optimizer
    settings : FinetuneSettings
    labels : (N,) int64 array
        Of the whole data set.
    weights : (K,) float32 tensor
        Of the classes, on the device.
    precision : torch.dtype
    world : World
    log : callable

    Attributes
    ----------
    network : nn.Module
        What is called for scores: the model, perhaps wrapped.
    parts : int
        That a batch is computed in.
    learning : hashable
        What tells apart the blocks that learn now.
    recordings : Recordings
    sums : (4,) float32 tensor
        Loss times weight, weight, correct and counted rows since they were last set to zero.
    """

    def __init__(self, model: Classifier, optimizer: torch.optim.Optimizer, settings: FinetuneSettings,
                 labels: np.ndarray, weights: torch.Tensor, precision: torch.dtype, world: World,
                 log: Callable[[str], object]):
        self.model, self.optimizer, self.settings, self.labels = model, optimizer, settings, labels
        self.weights, self.precision, self.world, self.log = weights, precision, world, log
        self.device = weights.device
        self.network: nn.Module = model
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.parts = settings.accumulate
        self.sums = torch.zeros(4, device=self.device)
        self._unseen: list[tuple[Place, float, torch.Tensor]] = []
        self.learning: Any = None
        recorder = partial(record, device=self.device, warm=WARM) if self.device.type == "cuda" else None
        self.recordings = Recordings(model, settings.batch_size, recorder, log)
        if reason := self._not_recorded():
            self.recordings.stop(reason)

    def _not_recorded(self) -> str:
        """Return why steps cannot be recorded; empty where they may be."""
        settings = self.settings
        reasons = {
            "images are mixed": settings.mixup or settings.cutmix,
            "--compile does that itself": settings.compile,
            "float16 scales its loss": self.precision == torch.float16,
            "several processes train together": self.world.size > 1,
            "batches are computed in parts": self.parts > 1,
            f"with more than {MOST_IMAGES} images a step nothing is gained": settings.batch_size > MOST_IMAGES,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def step(self, batch: Batch, place: Place, rate: float) -> bool:
        """Take one step on this process's part of a batch; return whether there was anything in it.

        Raises
        ------
        PipelineError
            If the loss is no number, or memory is too small for a single image.
        """
        seed = (self.settings.seed, *place, self.world.rank)
        inputs, targets = self._rows(batch)
        if not len(inputs):
            return False
        images = self.model.prepared(inputs.to(self.device, non_blocking=True))
        images = mix_images(images, targets, self.settings, np.random.default_rng((*seed, 1)))
        total = self.world.total(targets.total())
        if self.world.size > 1 and not float(total):
            return False
        # drawn anew for each step, so that dropout is the same wherever a run was interrupted
        drawn = int(np.random.default_rng(seed).integers(2**62))
        torch.manual_seed(drawn)
        loss, scores = self._gradients(images, targets, total, drawn)
        self._unseen.append((place, rate, loss.clone()))
        if self.device.type == "cpu" or len(self._unseen) >= LOOK_EVERY:
            self.look()
        self._update()
        correct = ((scores.argmax(1) == targets.labels) * targets.counted).sum()
        share = total / self.world.size
        self.sums += torch.stack([loss * share, share, correct, targets.counted.sum()])
        return True

    def look(self) -> None:
        """Raise a `PipelineError` if a loss that was not looked at yet is no number."""
        unseen, self._unseen = self._unseen, []
        losses = torch.stack([loss for *_, loss in unseen]).tolist() if unseen else []
        for ((epoch, step), rate, _), loss in zip(unseen, losses, strict=True):
            if not math.isfinite(loss):
                wider = ", or --precision float32" if self.precision != torch.float32 else ""
                raise PipelineError(f"The loss became {loss} in epoch {epoch + 1} at step {step + 1}, with learning "
                                    f"rate {rate:g}. Try --lr {rate / 10:g}, --warmup 1 or --clip 1{wider}.")

    def _rows(self, batch: Batch) -> tuple[torch.Tensor, Targets]:
        """Return inputs and targets; where other processes have some, an empty part becomes a row that counts 0."""
        inputs, labels = batch.inputs, self.labels[batch.indices]
        counted = np.ones(len(labels), np.float32)
        if not len(labels) and self.world.size > 1:
            inputs = inputs.new_zeros((1, *inputs.shape[1:]))
            labels, counted = np.zeros(1, np.int64), np.zeros(1, np.float32)
        device = self.device
        return inputs, Targets(torch.from_numpy(labels).to(device), self.weights,
                               torch.from_numpy(counted).to(device), self.settings.label_smoothing)

    def _gradients(self, images: torch.Tensor, targets: Targets, total: torch.Tensor, seed: int
                   ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute gradients; return the batch's loss and its scores (n, K)."""
        while True:
            self.optimizer.zero_grad()
            try:
                if self.parts == 1 and self.world.size == 1 and targets.share == 1:
                    rest = targets.labels, targets.counted, total
                    loss, scores = self.recordings.run(self.learning, seed, self._whole, (images, *rest))
                    return loss, scores
                size = math.ceil(len(images) / self.parts)
                parts = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
                found = [self._part(images, targets, total, rows, rows is parts[-1]) for rows in parts]
                return torch.stack([loss for loss, _ in found]).sum(), torch.cat([scores for _, scores in found])
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                self._use_more_parts(error, len(images))
            # only outside of `except` is what the failed attempt held free again
            if self.device.type != "cpu":
                torch.accelerator.empty_cache()

    def _whole(self, images: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, total: torch.Tensor
               ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a whole batch's gradients from nothing but these tensors, as a recording must."""
        self.optimizer.zero_grad()
        targets = Targets(labels, self.weights, counted, self.settings.label_smoothing)
        return self._part(images, targets, total, slice(None), True)

    def _part(self, images: torch.Tensor, targets: Targets, total: torch.Tensor, rows: slice, last: bool
              ) -> tuple[torch.Tensor, torch.Tensor]:
        alone = last or self.world.size == 1
        with nullcontext() if alone else self.network.no_sync():  # type: ignore[operator]
            with autocast(self.device, self.precision), quick_convolutions(self.device):
                scores = self.network(images[rows])
            # gradients are averaged over the processes, hence times their number
            loss = targets.loss(scores, rows) * (self.world.size / total)
            self.scaler.scale(loss).backward()
        return loss.detach(), scores.detach()

    def _use_more_parts(self, error: RuntimeError | MemoryError, images: int) -> None:
        """After running out of memory, compute batches in twice as many parts: less at once, the same step."""
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in str(error) for words in NO_MEMORY):
            raise error
        if self.recordings.held:
            self.recordings.stop(f"memory on {self.device} is short")
            return
        if self.parts >= images or self.world.size > 1:
            count = math.ceil(images / self.parts)
            raise PipelineError(f"Out of memory on {self.device} with {count} images at once ({error}). Use a smaller "
                                "network or --batch-size, or --precision bfloat16.") from error
        self.parts *= 2
        self.log(f"out of memory: batches are now computed in {self.parts} parts of "
                 f"{math.ceil(images / self.parts)} images; gradients add up, so steps stay as they were")

    def _update(self) -> None:
        if self.settings.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
