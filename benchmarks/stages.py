"""What each stage of extraction costs by itself, and the bounds that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones import Backbone
from pipeline.data import Dataset
from pipeline.engines import make_engine
from pipeline.engines.embedding import available_cores


def bound(dataset: Dataset, backbone: Backbone, engine: str, cache_dir: Path, busy: int, count: int = 128) -> float:
    """Return cores / (CPU seconds that an image takes to decode and to go through the network).

    With all cores `busy` an image takes longer than with one, where cores share caches, arithmetic units or clocks.
    """
    made = make_engine(backbone, "cpu", engine, workers=busy, cache_dir=cache_dir)
    count = min(count, len(dataset.paths))
    chosen = np.linspace(0, len(dataset.paths) - 1, count).astype(int)

    def work(number: int) -> None:
        torch.set_num_threads(1)
        mine = chosen[number::busy]
        for start in range(0, len(mine), 8):
            made(np.concatenate([pixels(dataset, backbone, index) for index in mine[start : start + 8]]))

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(busy) as workers:
            for _ in range(2):  # the first to warm up
                begin = time.process_time()
                list(workers.map(work, range(busy)))
                taken = time.process_time() - begin
    finally:
        torch.set_num_threads(threads)
    return available_cores() * count / taken


def pixels(dataset: Dataset, backbone: Backbone, index: int) -> np.ndarray:
    """Return the (1, H, W, 3) pixels of an image, from its file."""
    return backbone.pixels(dataset.read(index), dataset.limits)


def accelerator_stages(
    dataset: Dataset, backbone: Backbone, device: str, batch_size: int = 64
) -> Iterator[tuple[str, float, str]]:
    """Yield each stage's name, its images a second with nothing else going on, and remarks.

    `chip` is what multiplying large matrices, the most that a chip computes, would allow the network's arithmetic.
    """
    yield "decode", decoding_rate(dataset, backbone), f"{available_cores()} cores"
    batch = torch.zeros((batch_size, *backbone.transform.crop, 3), dtype=torch.uint8)
    batch = batch.pin_memory() if device != "cpu" else batch
    network, there = make_engine(backbone, device, "torch").network, batch.to(device)  # type: ignore[attr-defined]
    rate = rate_of(lambda: batch.to(device, non_blocking=True, copy=True), device) * batch_size
    yield "transfer", rate, f"{rate * batch[0].nbytes / 1e9:.1f} GB/s, pinned, uint8"
    yield "forward", rate_of(lambda: network(there), device) * batch_size, f"batches of {batch_size}"
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.network()(torch.zeros(1, 3, *backbone.transform.crop))
    work, most = counter.get_total_flops(), matrix_rate(backbone.precision, device)
    yield "chip", most / work, f"{work / 1e9:.2f} GFLOP an image at {most / 1e12:.1f} TFLOP/s"


def decoding_rate(dataset: Dataset, backbone: Backbone, count: int = 256) -> float:
    """Return the images a second that all cores decode and resize together."""
    chosen = np.linspace(0, len(dataset.paths) - 1, count).astype(int)
    with ThreadPoolExecutor(available_cores()) as workers:
        for _ in range(2):  # the first to warm up
            begin = time.perf_counter()
            list(workers.map(lambda index: pixels(dataset, backbone, index), chosen))
            taken = time.perf_counter() - begin
    return count / taken


def matrix_rate(precision: str, device: str) -> float:
    """Return the FLOP/s of multiplying two large matrices."""
    size = 8192 if device != "cpu" else 1024
    kind = torch.float32 if precision == "tf32" else getattr(torch, precision)
    matrix = torch.randn(size, size, device=device, dtype=kind)
    return rate_of(lambda: matrix @ matrix, device) * 2 * size**3


def rate_of(stage: Callable[[], object], device: str, repeat: int = 20) -> float:
    """Return how often a second a stage is done on the device."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    with torch.inference_mode():
        for times in (3, repeat):  # the first to warm up
            wait()
            begin = time.perf_counter()
            for _ in range(times):
                stage()
            wait()
    return repeat / (time.perf_counter() - begin)
