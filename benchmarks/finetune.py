"""Fine-tuning against the tutorial's own loop: the same network, images, batches and settings, epoch by epoch in turn.

    python benchmarks/finetune.py FOLDER [--epochs 3] [--images N] [--batch-size 4] [--workers 4] [--threads N]

FOLDER holds train/ and val/ with class folders. Rows are printed as they come: seconds an epoch of training, CPU
seconds (which other work on the machine changes least), and where the time went: forward, backward with the loss, the
optimiser, and between steps, which is mostly waiting for images. Then medians, and each loop's accuracy on val.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from turns import in_turn, medians

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for all: spinning threads are useless on a busy machine

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import v2

from pipeline.backbones import resolve
from pipeline.data import Dataset, load_dataset
from pipeline.engines.memory import kept_memory
from pipeline.evaluation.metrics import wilson_interval
from pipeline.finetuning import FinetuneSettings
from pipeline.finetuning.batches import Decoder, grouped
from pipeline.finetuning.device_batches import decoder_for
from pipeline.finetuning.distributed import World
from pipeline.finetuning.network import Classifier, choose_precision
from pipeline.finetuning.trainer import Trainer

PARTS = ("forward", "backward", "optimizer", "between")


@dataclass
class Loop:
    """A way to train, and what its epochs took.

    Attributes
    ----------
    model : nn.Module
        From normalised images to scores.
    optimizer : torch.optim.Optimizer
    epoch : callable
        Trains for one epoch.
    rows : list of tuple
        For each epoch seconds, CPU seconds, and the share of each of `PARTS`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: Callable[[], object]
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._spent, self._last = dict.fromkeys(PARTS, 0.0), 0.0
        # each hook ends the part before it
        self.model.register_forward_pre_hook(lambda *_: self._end("between"))
        self.model.register_forward_hook(lambda *_: self._end("forward"))
        self.optimizer.register_step_pre_hook(lambda *_: self._end("backward"))
        self.optimizer.register_step_post_hook(lambda *_: self._end("optimizer"))

    def _end(self, part: str) -> None:
        now = time.perf_counter()
        self._spent[part] += now - self._last
        self._last = now

    def run(self) -> tuple[float, ...]:
        """Train for an epoch."""
        self._spent = dict.fromkeys(PARTS, 0.0)
        begin, cpu = time.perf_counter(), cpu_seconds()
        self._last = begin
        self.epoch()
        self._end("between")
        wall = time.perf_counter() - begin
        self.rows.append((wall, cpu_seconds() - cpu, *(self._spent[part] / wall for part in PARTS)))
        return self.rows[-1]


def tutorial(folder: Path, images: int, batch_size: int, workers: int, device: torch.device) -> Loop:
    """Train as the tutorial does, with augmentation but without validation."""
    backbone = resolve()
    transform = backbone.transform
    views = v2.Compose([v2.RandomResizedCrop(transform.crop), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize(transform.mean, transform.std)])
    data = datasets.ImageFolder(folder / "train", views, is_valid_file=lambda path: path.endswith(".jpg"))
    chosen = Subset(data, np.linspace(0, len(data) - 1, min(images, len(data))).astype(int).tolist())
    loader = DataLoader(chosen, batch_size, shuffle=True, num_workers=workers)
    model = nn.Sequential(backbone.network(), nn.Linear(1280, len(data.classes))).to(device)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9), nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            _, predictions = torch.max(outputs, 1)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            loss.item() * inputs.size(0), torch.sum(predictions == labels.data).item()

    return Loop(model, optimizer, epoch)


def ours(
    dataset: Dataset, batch_size: int, precision: str, device: torch.device
) -> Loop:  # fmt: skip
    """Train with this project's loop. Of a step that is replayed as a CUDA graph all the time is `between`."""
    backbone = resolve()
    settings = FinetuneSettings(batch_size=batch_size, precision=precision, epochs=1000, step_size=1000,
                                device=str(device))
    dtype = choose_precision(precision, device)
    model = Classifier(backbone.network(), 1280, len(dataset.classes), backbone.transform).placed(device, dtype)
    decoder = decoder_for(dataset, backbone.transform, settings, device)
    only_train = replace(dataset, splits=np.where(dataset.splits == "train", "train", "none"))
    trainer = Trainer(model, only_train, decoder, settings, dtype, World(), say_how)

    def epoch() -> None:
        with kept_memory(device.type == "cpu"):
            trainer._run_epoch(lambda images: None)

    return Loop(model, trainer.stepper.optimizer, epoch)


def say_how(line: str) -> None:
    """Print how steps are run, of what a trainer says."""
    if line.startswith("steps "):
        print(line, flush=True)


@torch.inference_mode()
def correct(loop: Loop, dataset: Dataset, device: torch.device) -> tuple[int, int]:
    """Return how many val images a loop's network classifies rightly, in float32, and how many there are."""
    backbone = resolve()
    prepared = Classifier(backbone.network(), 1280, 2, backbone.transform).to(device).prepared
    decoder, right, seen = Decoder(dataset, backbone.transform), 0, 0
    loop.model.eval()
    for batch in decoder.batches(grouped(dataset.select("val"), 8)):
        scores = loop.model(prepared(batch.inputs.to(device)))
        right += int((scores.argmax(1).cpu().numpy() == dataset.labels[batch.indices]).sum())
        seen += len(batch.indices)
    decoder.close()
    return right, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10**9, help="of train (default: all)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    dataset = load_dataset(str(options.folder), cache_dir="cache")
    train = dataset.select("train")
    kept = np.isin(np.arange(len(dataset)), train[np.linspace(
        0, len(train) - 1, min(options.images, len(train))).astype(int)])
    dataset = replace(dataset, splits=np.where((dataset.splits == "train") & ~kept, "none", dataset.splits))
    loops = {"tutorial": tutorial(options.folder, options.images, options.batch_size, options.workers, device)}
    for precision in ("float32", "bfloat16"):
        loops[f"ours, {precision}"] = ours(dataset, options.batch_size, precision, device)
    print(f"{int(kept.sum())} images an epoch, batches of {options.batch_size}, {torch.get_num_threads()} threads")
    in_turn({name: partial(tell, name, loop) for name, loop in loops.items()}, options.epochs)
    # the first epoch warms up, and decodes images that later ones find in memory
    usual = {name: medians(loop.rows[1:] or loop.rows) for name, loop in loops.items()}
    first = usual["tutorial"]
    for name, row in usual.items():
        right, seen = correct(loops[name], dataset, device)
        low, high = wilson_interval(right, seen)
        print(f"median   {name:15} {told(row)}   {first[0] / row[0]:5.2f}x   {first[1] / row[1]:5.2f}x CPU   "
              f"val {right / seen:.3f} ({low:.3f}-{high:.3f})")


def tell(name: str, loop: Loop) -> None:
    """Train an epoch and print its figures."""
    print(f"epoch {len(loop.rows) + 1}  {name:15} {told(loop.run())}", flush=True)


def told(row: tuple[float, ...] | list[float]) -> str:
    """Return an epoch's figures as text."""
    shares = "  ".join(f"{part} {share:3.0%}" for part, share in zip(PARTS, row[2:], strict=True))
    return f"{row[0]:7.2f} s  {row[1]:7.2f} CPU s  {shares}"


def cpu_seconds() -> float:
    """Return the CPU time of this process and its finished children, such as the loader's workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
