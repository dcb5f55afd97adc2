"""One optimiser step: gradients in as many parts as memory asks for, and a look at the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from ..errors import PipelineError
from .batches import Batch
from .convolutions import quick_convolutions
from .distributed import World
from .network import Classifier, autocast
from .optimisation import Targets, mix_images
from .settings import FinetuneSettings

LOOK_EVERY = 50  # steps between looks at the loss on an accelerator, where each look waits for it
# what torch says on a CPU: its allocator, and oneDNN, whose kernels are built when they are first used
NO_MEMORY = ("allocate memory", "could not create a primitive", "could not create a memory")
Place = tuple[int, int]  # epoch and step, from 0


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

    def step(self, batch: Batch, place: Place, rate: float) -> bool:
        """Take one step on this process's part of a batch; return whether there was anything in it.

        Raises
        ------
        PipelineError
            If the loss is no number, or memory is too small for a single image.
        """
        seed = (self.settings.seed, *place, self.world.rank)
        pixels, targets = self._rows(batch)
        if not len(pixels):
            return False
        images = self.model.normalise(torch.from_numpy(pixels).to(self.device, non_blocking=True))
        images = mix_images(images, targets, self.settings, np.random.default_rng((*seed, 1)))
        total = self.world.total(targets.total())
        if self.world.size > 1 and not float(total):
            return False
        # drawn anew for each step, so that dropout is the same wherever a run was interrupted
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        loss, scores = self._gradients(images, targets, total)
        self._unseen.append((place, rate, loss))
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

    def _rows(self, batch: Batch) -> tuple[np.ndarray, Targets]:
        """Return pixels and targets; where other processes have some, an empty part becomes a row that counts 0."""
        pixels, labels = batch.pixels, self.labels[batch.indices]
        counted = np.ones(len(labels), np.float32)
        if not len(labels) and self.world.size > 1:
            pixels = np.zeros((1, *pixels.shape[1:]), np.uint8)
            labels, counted = np.zeros(1, np.int64), np.zeros(1, np.float32)
        device = self.device
        return pixels, Targets(torch.from_numpy(labels).to(device), self.weights,
                               torch.from_numpy(counted).to(device), self.settings.label_smoothing)

    def _gradients(self, images: torch.Tensor, targets: Targets, total: torch.Tensor
                   ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute gradients; return the batch's loss and its scores (n, K)."""
        while True:
            self.optimizer.zero_grad()
            try:
                size = math.ceil(len(images) / self.parts)
                parts = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
                found = [self._part(images, targets, total, rows, rows is parts[-1]) for rows in parts]
                return torch.stack([loss for loss, _ in found]).sum(), torch.cat([scores for _, scores in found])
            except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
                self._use_more_parts(error, len(images))
            # only outside of `except` is what the failed attempt held free again
            if self.device.type != "cpu":
                torch.accelerator.empty_cache()

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
