"""Stage one against the usual ways of getting features, on a folder of your own.

    python benchmarks/extract.py FOLDER [--backbone NAME] [--weights FILE] [--device cpu|cuda] [--repeat 3]

FOLDER is laid out as train/<class>/ and val/<class>/. All ways take turns, `--repeat` times, so that a busy minute
hits each of them; the median is shown. A run has a process of its own, because memory settings of one would serve
the others. It builds its network, computes the features of every image, and writes them to an .h5 file; imports
are left out, and the conversion for OpenVINO is kept after the first turn. `bound` is cores / (CPU seconds that one
image takes to decode and to go through the network), which no way can beat. `cosine` is the agreement with torch in
float32, mean and least.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import peers
import torch

from pipeline.backbones import Backbone, make_engine, resolve
from pipeline.backbones.embedding import available_cores
from pipeline.data import Dataset, load_dataset
from pipeline.errors import PipelineError
from pipeline.experiment import train_head
from pipeline.extraction import extract_features

Rows = dict[str, np.ndarray]  # features by path relative to the folder
VARIANTS = [("float32", "torch"), ("float32", "openvino"), ("bfloat16", "torch"), ("bfloat16", "openvino"),
            ("int8", "openvino")]


class Ours:
    """This pipeline at one precision, on one engine."""

    def __init__(self, dataset: Dataset, backbone: Backbone, engine: str, device: str, folder: Path):
        self.dataset, self.backbone, self.engine, self.device = dataset, backbone, engine, device
        self.cache_dir = folder / f"{backbone.precision}-{engine}"

    def __call__(self) -> Rows:
        for cache in self.cache_dir.glob("*/*.h5"):
            cache.unlink()
        done = extract_features(self.dataset, self.backbone, cache_dir=self.cache_dir, device=self.device,
                                engine=self.engine)
        if any("torch" in note for note in done.notes) and self.engine != "torch":
            raise PipelineError(" ".join(done.notes))
        with done.open() as cache:
            return dict(zip(cache.paths, cache.read_rows(), strict=True))

    def accuracy(self) -> float:
        """Val accuracy of the logistic head on these features."""
        cache = next(self.cache_dir.glob(f"*/*{self.backbone.spec.short}.h5"))
        run = train_head("logistic", features=cache, runs_dir=self.cache_dir / "runs", name="logistic")
        return run.metrics["splits"]["val"]["accuracy"]

    def bound(self) -> float:
        """Images a second if decoding and the network had all cores to themselves without a gap."""
        if self.device != "cpu":
            return float("nan")
        decoding, batch = decode_seconds(self.dataset, self.backbone)
        engine = make_engine(self.backbone, "cpu", self.engine, cache_dir=self.cache_dir)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        forward = cpu_seconds(lambda: engine(batch)) / len(batch)
        torch.set_num_threads(threads)
        return available_cores() / (decoding + forward)


def decode_seconds(dataset: Dataset, backbone: Backbone, count: int = 64) -> tuple[float, np.ndarray]:
    """Return the CPU seconds that an image takes to read, decode and resize, and a batch of 8."""
    chosen = np.linspace(0, len(dataset.paths) - 1, count).astype(int)
    begin = time.thread_time()
    pixels = [backbone.transform(backbone.decode(dataset.read(index), dataset.limits)) for index in chosen]
    return (time.thread_time() - begin) / len(chosen), np.stack(pixels[:8])


def cpu_seconds(function: Callable[[], object], repeat: int = 7) -> float:
    """Return the median CPU time of a call, over all threads of the process."""
    function()
    taken = []
    for _ in range(repeat):
        begin = time.process_time()
        function()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def accelerator_stages(dataset: Dataset, backbone: Backbone, device: str, batch_size: int = 64) -> Iterator[str]:
    """Yield lines on each stage alone: decoding on all cores, the bus, the network."""
    decoding, _ = decode_seconds(dataset, backbone)
    yield f"decode, {available_cores()} cores: {available_cores() / decoding:,.0f} images/s"
    pixels = torch.zeros((batch_size, *backbone.transform.crop, 3), dtype=torch.uint8).pin_memory()
    engine = make_engine(backbone, device, "torch")
    network, there = engine.network, pixels.to(device)  # type: ignore[attr-defined]
    stages = {"transfer": lambda: pixels.to(device, non_blocking=True), "forward": lambda: network(there)}
    for name, stage in stages.items():
        with torch.inference_mode():
            for repeat in (3, 20):  # the first to warm up
                torch.cuda.synchronize()
                begin = time.perf_counter()
                for _ in range(repeat):
                    stage()
                torch.cuda.synchronize()
        yield f"{name}: {20 * batch_size / (time.perf_counter() - begin):,.0f} images/s ({backbone.precision})"


def turns(names: list[str], given: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], dict[str, Rows]]:
    """Let each way run in turn; one that fails is told and left out."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Rows] = {}
    for _ in range(given.repeat):
        for name in list(seconds):
            try:
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    taken, rows[name] = process.submit(measured, name, given, folder).result()
            except Exception as error:  # other people's packages and downloads fail in any way
                print(f"skipped {name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                del seconds[name]
                continue
            seconds[name].append(taken)
    return seconds, rows


def measured(name: str, given: argparse.Namespace, folder: Path) -> tuple[float, Rows]:
    """Run one way in this process, which has done nothing else; return its seconds and rows."""
    for module in ("torchvision.datasets", "timm.data", "img2vec_pytorch", "embetter.vision", "lightly.data"):
        with suppress(Exception):
            import_module(module)
    way = all_ways(given, folder)[name]
    begin = time.perf_counter()
    rows = way()
    return time.perf_counter() - begin, rows


def all_ways(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Rows]]:
    """Return every way to get features by its name."""
    dataset = load_dataset(str(given.folder), cache_dir=folder)
    backbones = {precision: resolve(given.backbone, given.weights, precision=precision)
                 for precision in dict.fromkeys(precision for precision, _ in VARIANTS)}
    ours = {
        f"ours {precision} {engine}": Ours(dataset, backbones[precision], engine, given.device, folder)
        for precision, engine in VARIANTS if engine == "torch" or given.device == "cpu"
    }  # fmt: skip
    return {**peers.ways(given.folder, backbones["float32"], given.device, folder), **ours}


def agreement(rows: Rows, reference: Rows) -> str:
    """Return mean and least cosine over the images that both have; a dash where these are other features."""
    both = [path for path in reference if path in rows]
    if not both or rows[both[0]].shape != reference[both[0]].shape:
        return "-"
    mine, theirs = (np.stack([each[path] for path in both]) for each in (rows, reference))
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    return f"{cosines.mean():.5f} {cosines.min():.5f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--backbone", default="efficientnet_lite0")
    options.add_argument("--weights")
    options.add_argument("--device", default="cpu")
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--only", nargs="*", help="ways whose name contains one of these words")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    ways = all_ways(given, folder)
    names = [name for name in ways if not given.only or any(word in name for word in given.only)]
    ours = {name: way for name, way in ways.items() if isinstance(way, Ours)}
    dataset = next(iter(ours.values())).dataset
    print(f"{len(dataset.paths)} images, {given.backbone}, {given.device}, {available_cores()} cores, "
          f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    if given.device != "cpu":
        print(torch.cuda.get_device_name(given.device))
        for way in ours.values():
            print(*accelerator_stages(dataset, way.backbone, given.device), sep="\n")
    seconds, rows = turns(names, given, folder)
    reference = rows.get("ours float32 torch", {})
    first = statistics.median(seconds["tutorial"]) if seconds.get("tutorial") else float("nan")
    print(f"{'':28}{'images/s':>10}{'x tutorial':>12}{'bound':>8}{'val':>8}  cosine")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        own = ours.get(name)
        more = (f"{own.bound():8.0f}", f"{own.accuracy():8.4f}") if own else (8 * " ", 8 * " ")
        print(f"{name:28}{len(rows[name]) / middle:10.1f}{first / middle:12.2f}{more[0]}{more[1]}  "
              f"{agreement(rows[name], reference)}")


if __name__ == "__main__":
    main()
