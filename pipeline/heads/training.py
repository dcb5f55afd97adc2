"""Minibatch training of a small torch network on cached features; the only module of this room that needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import HeadError, known
from .rows import SMALL, StreamedRows

LEARNING_RATES = {"sgd": 1e-3, "adamw": 1e-3, "lbfgs": 1.0}
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SCHEDULES = ("step", "cosine", "constant")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the fields are the settings of the torch heads."""

    optimizer: str
    lr: float | None
    momentum: float
    weight_decay: float
    label_smoothing: float
    schedule: str
    step_size: int
    gamma: float
    epochs: int
    batch_size: int
    resample: bool
    seed: int
    device: str

    def checked(self) -> Recipe:
        """Return itself, or raise a `HeadError` for a setting that cannot be."""
        known("optimizer", self.optimizer, LEARNING_RATES)
        known("schedule", self.schedule, SCHEDULES)
        for name, least in (("epochs", 1), ("batch_size", 1), ("step_size", 1), ("momentum", 0), ("weight_decay", 0)):
            if getattr(self, name) < least:
                raise HeadError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 <= self.label_smoothing < 1:
            raise HeadError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1).")
        return self

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr


@dataclass(frozen=True)
class Rows:
    """Features (N, D) and class codes (N,) on the training device; code -1 is a class unseen in training.

    Features that do not fit into memory come to the device a buffer at a time. Of every `views` neighbouring rows,
    which are views of one image, an epoch takes one.
    """

    X: torch.Tensor | StreamedRows
    codes: torch.Tensor
    views: int = 1

    @classmethod
    def of(cls, X: np.ndarray | StreamedRows, codes: np.ndarray, device: str, views: int = 1) -> Rows:
        """Copy arrays to `device`, features as float32."""
        if isinstance(X, StreamedRows):
            return cls(X, torch.tensor(codes, device=device))
        # a copy, because arrays mapped from a file are read-only and torch has no such tensors
        return cls(torch.tensor(X, dtype=torch.float32, device=device), torch.tensor(codes, device=device), views)

    def buffers(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield what is shuffled at a time: everything, or random parts in turn."""
        if isinstance(self.X, torch.Tensor):
            yield self.X, self.codes
            return
        seed = int(torch.randint(2**62, (), generator=generator))
        for positions in self.X.buffers(np.random.default_rng(seed)):
            yield self._at(positions)

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield everything, or one part after the other."""
        if isinstance(self.X, torch.Tensor):
            yield self.X, self.codes
            return
        for start, rows in self.X.chunks():
            X = torch.from_numpy(self.X.finish(rows)).to(self.codes.device, torch.float32)
            yield X, self.codes[start : start + len(rows)]

    def _at(self, positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(self.X, StreamedRows)
        X = torch.from_numpy(self.X.at(positions)).to(self.codes.device, torch.float32)
        return X, self.codes[torch.from_numpy(positions)]


def train(network: nn.Module, rows: Rows, validation: Rows | None, class_weights: np.ndarray,
          recipe: Recipe) -> tuple[list[dict[str, float]], int]:
    """Train `network` in place.

    Parameters
    ----------
    network : nn.Module
        From (B, D) features to (B, K) scores.
    rows, validation : Rows
        With validation rows the weights of the epoch with the best validation accuracy (the first of equals)
        are put back at the end; otherwise the last epoch's stay.
    class_weights : (K,) array
        Weight of each class in the loss.
    recipe : Recipe

    Returns
    -------
    list of dict, int
        For each epoch `epoch`, `lr`, `train_loss`, `train_accuracy` (both while it was training) and, with
        validation rows, `val_loss`, `val_accuracy`; and the number of the epoch that was kept.
    """
    recipe.checked()
    if recipe.optimizer == "lbfgs" and isinstance(rows.X, StreamedRows):
        raise HeadError("The optimizer 'lbfgs' takes all rows at once, and these are streamed; take 'sgd' or 'adamw'.")
    with _threads(rows, recipe):
        return _train(network, rows, validation, _loss(rows, class_weights, recipe.label_smoothing), recipe)


@contextmanager
def _threads(rows: Rows, recipe: Recipe) -> Iterator[None]:
    """Let torch use one thread for small batches, which more threads only slow down."""
    before = torch.get_num_threads()
    if recipe.batch_size * rows.X.shape[1] < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(network: nn.Module, rows: Rows, validation: Rows | None, loss_of: LossOf,
           recipe: Recipe) -> tuple[list[dict[str, float]], int]:
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer, scheduler = _optimizer(network, recipe)
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, torch.Tensor]] | None = None
    for epoch in range(1, recipe.epochs + 1):
        line = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"]}
        line |= _epoch(network, rows, loss_of, optimizer, recipe, generator)
        scheduler.step()
        if not np.isfinite(line["train_loss"]):
            raise HeadError(f"The loss became {line['train_loss']} in epoch {epoch}: the learning rate "
                            f"{recipe.rate:g} is too high for these features; try a tenth of it.")
        if validation is not None:
            line |= _validate(network, validation)
            if best is None or line["val_accuracy"] > best[0]:
                best = line["val_accuracy"], epoch, _copied(network)
        history.append(line)
    if best is None:
        return history, recipe.epochs
    network.load_state_dict(best[2])
    return history, best[1]


def _loss(rows: Rows, class_weights: np.ndarray, label_smoothing: float) -> LossOf:
    """Return the weighted cross-entropy of a batch.

    Weights have mean 1 over all rows, not over each batch as in torch's own mean: there, a batch of rare rows alone
    and one of common rows alone would count the same.
    """
    weights = torch.tensor(class_weights, dtype=torch.float32, device=rows.codes.device)
    weights /= weights[rows.codes].mean()

    def mean_loss(scores: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        total = nn.functional.cross_entropy(scores, codes, weights, reduction="sum", label_smoothing=label_smoothing)
        return total / len(codes)

    return mean_loss


def _optimizer(network: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, Any]:
    rate, groups = recipe.rate, [{"params": _weights(network), "weight_decay": recipe.weight_decay},
                                 {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, rate, momentum=recipe.momentum)
    elif recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, rate)
    else:
        optimizer = torch.optim.LBFGS(network.parameters(), rate, max_iter=20, line_search_fn="strong_wolfe")
    factor: Callable[[int], float] = {
        "step": lambda epoch: recipe.gamma ** (epoch // recipe.step_size),
        "cosine": lambda epoch: (1 + np.cos(np.pi * epoch / recipe.epochs)) / 2,
        "constant": lambda epoch: 1.0,
    }[recipe.schedule]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _weights(network: nn.Module) -> list[nn.Parameter]:
    """Return what is decayed: matrices, no biases."""
    return [parameter for parameter in network.parameters() if parameter.ndim >= 2]


def _epoch(network: nn.Module, rows: Rows, loss_of: LossOf, optimizer: torch.optim.Optimizer, recipe: Recipe,
           generator: torch.Generator) -> dict[str, float]:
    network.train()
    loss_sum = correct = seen = 0.0
    for X, codes in _batches(rows, recipe, generator):
        scores = _step(network, X, codes, loss_of, optimizer, recipe)
        loss_sum += float(loss_of(scores, codes)) * len(codes)
        correct += int((scores.argmax(1) == codes).sum())
        seen += len(codes)
    return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}


def _step(network: nn.Module, X: torch.Tensor, codes: torch.Tensor, loss_of: LossOf,
          optimizer: torch.optim.Optimizer, recipe: Recipe) -> torch.Tensor:
    """Take one step and return the scores (B, K) from before it."""
    first: list[torch.Tensor] = []

    def closure() -> Any:
        optimizer.zero_grad()
        scores = network(X)
        first.append(scores.detach())
        loss = loss_of(scores, codes)
        if recipe.optimizer == "lbfgs":  # SGD and AdamW decay the weights themselves
            loss = loss + recipe.weight_decay / 2 * sum(w.square().sum() for w in _weights(network))
        loss.backward()
        return loss

    optimizer.step(closure)
    return first[0]


def _batches(rows: Rows, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images = rows.codes[:: rows.views]
    share = 1 / torch.bincount(images.cpu()).float()
    for X, codes in rows.buffers(generator):
        if recipe.optimizer == "lbfgs":  # it assumes the same rows at every step
            yield X, codes
            continue
        images = codes[:: rows.views]
        if recipe.resample:
            order = torch.multinomial(share[images.cpu()], len(images), replacement=True, generator=generator)
        else:
            order = torch.randperm(len(images), generator=generator)
        if rows.views > 1:
            order = order * rows.views + torch.randint(rows.views, (len(order),), generator=generator)
        for batch in order.to(codes.device).split(recipe.batch_size):
            yield X[batch], codes[batch]


@torch.no_grad()
def _validate(network: nn.Module, rows: Rows) -> dict[str, float]:
    network.eval()
    loss, named, right = 0.0, 0, 0
    for X, codes in rows.chunks():
        scores = network(X)
        seen = codes >= 0  # the loss of a class that the head cannot name would be infinite
        loss += float(nn.functional.cross_entropy(scores[seen], codes[seen], reduction="sum"))
        named += int(seen.sum())
        right += int((scores.argmax(1) == codes).sum())
    return {"val_loss": loss / named if named else float("nan"), "val_accuracy": right / len(rows.codes)}


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
