"""Fine-tuning against the tutorial's own loop: the same network, images, batches and settings, epoch by epoch in turn.

    python benchmarks/finetune.py FOLDER [--epochs 3] [--images 64] [--batch-size 4] [--workers 4] [--threads N]

FOLDER holds train/ and val/ with class folders. Rows are printed as they come: seconds an epoch of training, and CPU
seconds (which other work on the machine changes least), the tutorial's loop first. The last rows are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for both sides: spinning threads are useless on a busy machine

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets
from torchvision.transforms import v2

from pipeline.backbones import resolve
from pipeline.backbones.allocator import kept_memory
from pipeline.data import Dataset, load_dataset
from pipeline.finetuning import FinetuneSettings
from pipeline.finetuning.batches import Decoder
from pipeline.finetuning.distributed import World
from pipeline.finetuning.network import Classifier, choose_precision
from pipeline.finetuning.trainer import Trainer


def tutorial(folder: Path, images: int, batch_size: int, workers: int, device: torch.device) -> Iterator[None]:
    """Train as the tutorial does, an epoch for each `next`, with augmentation but without validation."""
    backbone = resolve()
    transform = backbone.transform
    views = v2.Compose([v2.RandomResizedCrop(transform.crop), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize(transform.mean, transform.std)])
    data = datasets.ImageFolder(folder / "train", views, is_valid_file=lambda path: path.endswith(".jpg"))
    chosen = Subset(data, np.linspace(0, len(data) - 1, min(images, len(data))).astype(int).tolist())
    loader = DataLoader(chosen, batch_size, shuffle=True, num_workers=workers)
    model = nn.Sequential(backbone.network(), nn.Linear(1280, len(data.classes))).to(device)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9), nn.CrossEntropyLoss()
    while True:
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
        yield


def ours(dataset: Dataset, batch_size: int, precision: str, device: torch.device) -> Iterator[None]:
    """Train with this project's loop, an epoch for each `next`."""
    backbone = resolve()
    settings = FinetuneSettings(batch_size=batch_size, precision=precision, epochs=1000, device=str(device))
    model = Classifier(backbone.network(), 1280, len(dataset.classes), backbone.transform)
    model = model.to(memory_format=torch.channels_last).to(device)
    decoder = Decoder(dataset, backbone.transform, cache_mb=settings.image_cache_mb)
    dtype = choose_precision(precision, device)
    trainer = Trainer(model, dataset, decoder, settings, dtype, World(), lambda line: None)
    with kept_memory(device.type == "cpu"):
        while True:
            trainer._run_epoch(lambda images: None)
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    dataset = load_dataset(str(options.folder), cache_dir="cache")
    train = dataset.select("train")
    keep = train[np.linspace(0, len(train) - 1, min(options.images, len(train))).astype(int)]
    dataset = replace(dataset, splits=np.where(np.isin(np.arange(len(dataset)), keep), "train", "none"))
    loops = {"tutorial": tutorial(options.folder, options.images, options.batch_size, options.workers, device)}
    for precision in ("float32", "bfloat16"):
        loops[f"ours, {precision}"] = ours(dataset, options.batch_size, precision, device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for epoch in range(options.epochs + 1):  # the first warms up
        for name, loop in loops.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            next(loop)
            row = time.perf_counter() - wall, cpu_seconds() - cpu
            if epoch:
                found[name].append(row)
                print(f"epoch {epoch}  {name:15} {row[0]:8.2f} s  {row[1]:8.2f} CPU s", flush=True)
    first = [statistics.median(column) for column in zip(*found["tutorial"], strict=True)]
    for name, rows in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        ratios = f"{first[0] / wall:5.2f}x   {first[1] / cpu:5.2f}x CPU"
        print(f"median   {name:15} {wall:8.2f} s  {cpu:8.2f} CPU s   {ratios}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and its finished children, such as the loader's workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
