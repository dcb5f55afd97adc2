"""Checkpoints that survive a kill, a power cut and a full disk: two are kept, each checked when it is read.

A checkpoint is two files: tensors (safetensors), and a record (JSON) that holds the tensors' SHA-256 and its own. The
record is written last, so a checkpoint without one was never finished. Nothing in either runs code.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..core.errors import RunError
from ..store.disk import DISK, Disk, DiskFile
from .trainer import Tensors, Trainer

FOLDER = "checkpoints"
KEPT = 2
FORMAT = 1


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    run_folder : Path
        They lie in ``checkpoints/`` below.
    disk : Disk
    """

    def __init__(self, run_folder: Path, disk: Disk = DISK):
        self.folder = run_folder / FOLDER
        self._disk = disk

    def records(self) -> list[Path]:
        """Return the records, the newest first."""
        return sorted(self.folder.glob("[0-9]*.json"), reverse=True)

    def save(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove all but the last two.

        Parameters
        ----------
        tensors : dict of str to torch.Tensor
        record : dict
            JSON values.

        Raises
        ------
        OSError
            As the system reports it; the earlier checkpoints are untouched.
        """
        self._disk.make_folder(self.folder)
        newest = self.records()[:1]
        number = int(newest[0].stem) + 1 if newest else 1
        path = self.folder / f"{number:06d}.json"
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        entry = {"format": FORMAT, "tensors": hashlib.sha256(content).hexdigest(), "record": record}
        entry["sha256"] = _digest(entry)
        self._disk.publish(path.with_suffix(".safetensors"), partial(_write, content))
        self._disk.publish(path, partial(_write, json.dumps(entry).encode()))
        self._remove(self.records()[KEPT:])
        return path

    def newest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]] | None:
        """Return the newest sound checkpoint's tensors and record, and a line for each damaged one passed over."""
        remarks: list[str] = []
        for path in self.records():
            try:
                return *_read(path), remarks
            except RunError as error:
                remarks.append(str(error))
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        self._remove(self.records())

    def _remove(self, records: list[Path]) -> None:
        kept = {path.stem for path in self.records()} - {path.stem for path in records}
        for path in records:
            self._disk.unlink(path)
        for path in self.folder.glob("*.safetensors"):
            if path.stem not in kept:
                self._disk.unlink(path)


def _write(content: bytes, file: DiskFile) -> None:
    file.write(content)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        entry = json.loads(path.read_bytes())
        content = path.with_suffix(".safetensors").read_bytes()
        expected = entry.pop("sha256")
        if entry["format"] != FORMAT:
            raise RunError(f"The checkpoint {path} is of format {entry['format']}, not {FORMAT}.")
        if _digest(entry) != expected or hashlib.sha256(content).hexdigest() != entry["tensors"]:
            raise RunError(f"The checkpoint {path} is damaged: its content does not have its SHA-256.")
        return load(content), entry["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(f"The checkpoint {path} cannot be read: {error}.") from error


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


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
        "mixing": trainer.decoder.mixing,
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
    trainer.decoder.mixing = record.get("mixing", 0)
    trainer.decoder.failures.update({int(index): reason for index, reason in record["failures"].items()})


def _lay_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimiser's tensors their parameters' layout in memory (channels last): fused kernels go by address."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if torch.is_tensor(tensor) and tensor.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
