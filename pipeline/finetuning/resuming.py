"""A trainer's state as a checkpoint holds it, and back."""

from __future__ import annotations

from typing import Any

import torch

from .trainer import Tensors, Trainer


def tensors_of(trainer: Trainer) -> Tensors:
    """Return every tensor that the rest of training depends on."""
    found = {f"model/{name}": tensor for name, tensor in trainer.copied().items()}
    found |= {f"average/{name}": tensor for name, tensor in trainer.average.items()}
    if trainer.best_epoch >= 0:
        found |= {f"best/{name}": tensor for name, tensor in trainer.best.items()}
    for number, state in trainer.stepper.optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{number}/{name}": value for name, value in state.items() if torch.is_tensor(value)}
    found["sums"] = trainer.stepper.sums
    return found


def record_of(trainer: Trainer) -> dict[str, Any]:
    """Return everything else that the rest of training depends on, as JSON values."""
    return {
        "epoch": trainer.epoch, "step": trainer.step, "seconds": trainer.seconds, "history": trainer.history,
        "best_epoch": trainer.best_epoch, "parts": trainer.stepper.parts,
        "scaler": trainer.stepper.scaler.state_dict(),
        "failures": {str(index): reason for index, reason in trainer.decoder.failures.items()},
    }


def restore(trainer: Trainer, tensors: Tensors, record: dict[str, Any]) -> None:
    """Put a trainer, freshly made with the same settings, where the checkpoint was taken."""
    groups: dict[str, Tensors] = {"model": {}, "average": {}, "best": {}}
    optimizer: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            number, _, key = rest.partition("/")
            optimizer.setdefault(int(number), {})[key] = tensor
        elif kind in groups:
            groups[kind][rest] = tensor.to(trainer.device)
    trainer.put(groups["model"])
    trainer.average, trainer.best = groups["average"], groups["best"]
    stepper = trainer.stepper
    stepper.optimizer.load_state_dict({**stepper.optimizer.state_dict(), "state": optimizer})
    _lay_as_parameters(stepper.optimizer)
    stepper.sums.copy_(tensors["sums"])
    stepper.scaler.load_state_dict(record["scaler"])
    stepper.parts = record["parts"]
    trainer.epoch, trainer.step, trainer.seconds = record["epoch"], record["step"], record["seconds"]
    trainer.history, trainer.best_epoch = record["history"], record["best_epoch"]
    trainer.decoder.failures.update({int(index): reason for index, reason in record["failures"].items()})


def _lay_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser's tensors their parameters' layout in memory (channels last): fused kernels go by address."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if torch.is_tensor(tensor) and tensor.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
