"""The training loop: epochs, validation, the weights that are kept, and what a checkpoint must hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import DataError
from ..data import Dataset
from .activations import CachedActivations
from .batches import Decoder, epoch_order, grouped
from .distributed import World
from .network import Classifier, autocast
from .optimisation import Stepper, class_weights, make_optimizer, rate_factor, set_rates, update_average
from .result import EVALUATION_BATCH, labelled
from .settings import STRATEGIES, FinetuneSettings

Tensors = dict[str, torch.Tensor]
TOLD = 0.1  # share of an epoch from which waiting for images is told


class Trainer:
    """Trains a classifier; all that it has learned so far is in `tensors()` and `record()`.

    Parameters
    ----------
    model : Classifier
        On its device.
    dataset : Dataset
    decoder : Decoder or CachedActivations
    settings : FinetuneSettings
    precision : torch.dtype
    world : World
    log : callable
        Takes a line for the user.
    track : callable
        Takes each line of the history.

    Attributes
    ----------
    history : list of dict
        See `Finetuned`.
    best_epoch : int
        The epoch whose weights selection keeps so far; -1 before there is one.
    epoch, step : int
        How many are done; steps within the epoch.
    """

    def __init__(self, model: Classifier, dataset: Dataset, decoder: Decoder | CachedActivations,
                 settings: FinetuneSettings, precision: torch.dtype, world: World, log: Callable[[str], object],
                 track: Callable[[dict[str, Any]], object] = lambda line: None):
        self.model, self.dataset, self.decoder, self.settings = model, dataset, decoder, settings
        self.precision, self.world, self.log, self.track = precision, world, log, track
        self.device = model.head.weight.device
        self.strategy = STRATEGIES[settings.strategy]
        self.train_indices, self.val_indices = labelled(dataset, "train"), labelled(dataset, "val")
        self.selects = settings.select == "best-on-val" and len(self.val_indices) > 0
        factors = self._factors(settings.epochs - 1)
        self.trained = [block for block, factor in zip(model.blocks, factors, strict=True) if factor > 0]
        weights = class_weights(self._checked_labels(), len(dataset.classes), settings.class_weight)
        optimizer = make_optimizer(model, factors, settings)
        self.stepper = Stepper(model, optimizer, settings, dataset.labels,
                               torch.from_numpy(weights).to(self.device), precision, world, log)
        self.history: list[dict[str, Any]] = []
        self.best_epoch, self.best = -1, Tensors()
        self.average = self.copied() if settings.ema else Tensors()
        self.epoch, self.step, self.seconds = 0, 0, 0.0

    def _factors(self, epoch: int) -> list[float]:
        return self.strategy.rates([block.name for block in self.model.blocks], self.settings, epoch)

    def _checked_labels(self) -> np.ndarray:
        labels = self.dataset.labels[self.train_indices]
        if len(found := np.unique(labels)) < 2:
            raise DataError(f"Training takes labelled train images of two classes or more; {self.dataset.root} has "
                            f"{len(labels)} of {len(found)}.")
        return labels

    @property
    def trainable_parameters(self) -> int:
        """How many parameters learn in some epoch, the head's included."""
        parameters = [parameter for block in self.trained for parameter in block.parameters.values()]
        return sum(parameter.numel() for parameter in (*parameters, *self.model.head.parameters()))

    def run(self, after_step: Callable[[int], object]) -> None:
        """Train from where it stands to the end.

        Parameters
        ----------
        after_step : callable
            Told after each step how many images of the epoch it took, and 0 after each epoch. What it raises ends
            training at a point from which it can go on.
        """
        if self.strategy.probe and not self.history:
            begin = time.perf_counter()
            self._finish_epoch({"epoch": 0, "lr": 0.0}, begin)
        while self.epoch < self.settings.epochs and not self._out_of_patience():
            self._run_epoch(after_step)
            after_step(0)

    def _out_of_patience(self) -> bool:
        return bool(self.selects and self.settings.patience and self.epoch - self.best_epoch >= self.settings.patience)

    def _run_epoch(self, after_step: Callable[[int], object]) -> None:
        settings, factors, begin = self.settings, self._factors(self.epoch), time.perf_counter()
        waited = self.decoder.waited
        self.model.unfreeze(factors)
        network: nn.Module = torch.compile(self.model) if settings.compile else self.model  # type: ignore[assignment]
        self.stepper.network = self.world.wrap(network, self.device)
        self.stepper.learning = tuple(factor > 0 for factor in factors)
        labels, seed = self.dataset.labels[self.train_indices], (settings.seed, self.epoch)
        order = self.decoder.arranged(epoch_order(self.train_indices, labels, seed, settings.resample), seed)
        groups = grouped(order, settings.batch_size)
        own = [group[self.world.rank :: self.world.size] for group in groups]
        rate, told = 0.0, self.stepper.sums.clone()
        batches = self.decoder.batches(own, settings.augmentation, seed, self.step)
        for group, batch in zip(groups[self.step :], batches, strict=True):
            # with a warm-up the first step counts as done, or it would be for nothing
            done = self.epoch + (self.step + (settings.warmup > 0)) / len(groups)
            rate = settings.lr * rate_factor(settings, done)
            set_rates(self.stepper.optimizer, rate, factors)
            self.model.training_mode(factors, settings.freeze_norm)
            if self.stepper.step(batch, (self.epoch, self.step), rate) and self.average:
                update_average(self.average, self._tensors(), settings.ema)
            self.step += 1
            if settings.log_every and self.step % settings.log_every == 0:
                told = self._tell_batch(len(groups), told)
            begin = self._clock(begin)
            after_step(len(group))
            begin = time.perf_counter()
        self.stepper.look()
        loss, weight, correct, seen = self.world.total(self.stepper.sums).tolist()
        if not seen:
            raise DataError(f"None of the training images in {self.dataset.root} can be read.")
        self.stepper.sums.zero_()
        self.epoch, self.step = self.epoch + 1, 0
        line = {"epoch": self.epoch, "lr": rate, "train_loss": loss / weight, "train_accuracy": correct / seen,
                "waited": self.decoder.waited - waited}
        self._finish_epoch(line, begin)

    def _tell_batch(self, batches: int, before: torch.Tensor) -> torch.Tensor:
        """Say how training went since the sums were `before`; return them as they are now."""
        loss, weight, correct, seen = (self.stepper.sums - before).tolist()
        if seen:
            self.log(f"epoch {self.epoch + 1}  batch {self.step}/{batches}  loss {loss / weight:.4f} "
                     f"accuracy {correct / seen:.4f}")
        return self.stepper.sums.clone()

    def _clock(self, begin: float) -> float:
        now = time.perf_counter()
        self.seconds += now - begin
        return now

    def _finish_epoch(self, line: dict[str, Any], begin: float) -> None:
        """Validate, keep the weights if they are the best so far, and write the epoch's line."""
        begin = self._clock(begin)
        training = self.seconds - sum(past["seconds"] for past in self.history)
        if len(self.val_indices):
            with self._averaged():
                line["val_loss"], line["val_accuracy"] = self._validated()
                self._keep_best(line)
        self._clock(begin)
        line["seconds"] = self.seconds - sum(past["seconds"] for past in self.history)
        line["images_per_second"] = len(self.train_indices) / training if line["epoch"] and training else 0.0
        self.history.append(line)
        self.log(epoch_line(line, self.settings.epochs))
        self.track(line)

    def _keep_best(self, line: dict[str, Any]) -> None:
        # what `interpolate` mixes with the probe must be something else than the probe
        before = [past["val_accuracy"] for past in self.history if past["epoch"] or not self.strategy.interpolate]
        eligible = line["epoch"] or not self.strategy.interpolate
        if self.selects and eligible and line["val_accuracy"] > max(before, default=-1.0):
            self.best_epoch, self.best = line["epoch"], self.copied()

    def _validated(self) -> tuple[float, float]:
        """Validate; where recorded steps leave too little memory for it, without them."""
        try:
            return self.validate()
        except torch.OutOfMemoryError:
            if not self.stepper.recordings.held:
                raise
        # only outside of `except` is what the failed attempt held free again
        self.stepper.recordings.stop(f"memory on {self.device} is short")
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()
        return self.validate()

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return the loss and the accuracy on the validation images, with the weights as they are."""
        self.model.eval()
        size = max(self.settings.batch_size, EVALUATION_BATCH.get(self.device.type, 64))
        sums = torch.zeros(3, device=self.device)
        for batch in self.decoder.batches(grouped(self.val_indices[self.world.rank :: self.world.size], size)):
            if len(batch.indices):
                labels = torch.from_numpy(self.dataset.labels[batch.indices]).to(self.device)
                inputs = batch.inputs.to(self.device)
                if self.device.type == "cuda":  # which plans its convolutions anew for every size of batch
                    inputs = nn.functional.pad(inputs, (*[0] * (2 * inputs.ndim - 1), size - len(inputs)))
                with autocast(self.device, self.precision):
                    scores = self.model(self.model.prepared(inputs))[: len(labels)]
                loss = nn.functional.cross_entropy(scores, labels, reduction="sum")
                sums += torch.stack([loss, (scores.argmax(1) == labels).sum(), loss.new_tensor(len(labels))])
        loss, correct, count = self.world.total(sums).tolist()
        if not count:
            raise DataError(f"None of the val images in {self.dataset.root} can be read.")
        return loss / count, correct / count

    def _tensors(self) -> Tensors:
        return self.model.tensors_of(self.trained)

    def copied(self) -> Tensors:
        """Return a copy of the weights that are trained, with their buffers."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def put(self, tensors: Tensors) -> None:
        """Give the trained part of the model these weights."""
        own = self._tensors()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Evaluate and keep the moving average of weights, if there is one."""
        if not self.average:
            yield
            return
        present = self.copied()
        self.put(self.average)
        try:
            yield
        finally:
            self.put(present)

    def final(self) -> Tensors:
        """Return the trained part's weights that selection keeps."""
        return self.best if self.best_epoch >= 0 else self.average or self.copied()


def epoch_line(line: dict[str, Any], epochs: int) -> str:
    """Return an epoch's line for the user."""
    parts = [f"epoch {line['epoch']}/{epochs}"]
    for split in ("train", "val"):
        if f"{split}_loss" in line:
            parts.append(f"{split} loss {line[f'{split}_loss']:.4f} accuracy {line[f'{split}_accuracy']:.4f}")
    if line["epoch"]:
        parts.append(f"lr {line['lr']:.3g}  {line['images_per_second']:.1f} images/s")
    if line.get("waited", 0) > TOLD * line["seconds"]:
        parts.append(f"waited {line['waited']:.1f} s for images (see --image-memory and --workers)")
    return "  ".join([*parts, f"{line['seconds']:.1f} s"])
