"""Stage one against the usual ways of getting features, on a folder of your own.

    python benchmarks/extract.py FOLDER [--backbone NAME] [--weights FILE] [--device cpu|cuda] [--repeat 3]
                                 [--only WORD …] [--also FOLDER] [--megapixels 12] [--commands]

FOLDER is laid out as train/<class>/ and val/<class>/. All ways take turns, `--repeat` times, so that a busy minute
hits each of them; the median is shown. A run has a process of its own, because memory settings of one would serve
the others. It builds its network, computes the features of every image, and writes them to an .h5 file; imports
are left out, and the conversion for OpenVINO is kept after the first turn.

`bound` is cores / (CPU seconds that one image takes to decode and to go through the network) with one core busy, `busy`
the same with all of them busy; on a GPU `bound` is the slowest of its stages. `val` is the val accuracy of the logistic
head, of FOLDER and of `--also`. `cosine` is the agreement with torch in float32, mean and least.

`--megapixels` runs on a few of the photos, enlarged and with grain; `--commands` runs whole commands, imports and all:
the tutorial's script, and `pipeline extract` where nothing is kept (cold) and with the prepared network kept (warm).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import peers
import stages
import torch
from PIL import Image
from turns import in_turn

from pipeline.backbones import Backbone, resolve
from pipeline.core.errors import EngineError, PipelineError
from pipeline.data import Dataset, load_dataset
from pipeline.engines import Running
from pipeline.engines.embedding import available_cores
from pipeline.stage_one.extraction import extract_features
from pipeline.stage_two.train import train_head

Rows = dict[Any, np.ndarray]  # features by path relative to the folder
Variant = tuple[str, str, dict[str, Any]]  # precision, engine, further settings of the backbone
CPU: list[Variant] = [("float32", "torch", {}), ("float32", "openvino", {}), ("bfloat16", "torch", {}),
                      ("bfloat16", "openvino", {}), ("int8", "openvino", {}), ("float32", "compile", {}),
                      ("bfloat16", "compile", {})]
GPU: list[Variant] = [("float32", "torch", {}), ("tf32", "torch", {}), ("bfloat16", "torch", {}),
                      ("bfloat16", "torch", {"decoder": "nvjpeg"}), ("bfloat16", "compile", {})]
ASKED_FOR = "compile"  # takes its time in every turn: only where `--only` names it


class Ours:
    """This pipeline at one precision, on one engine."""

    def __init__(self, dataset: Dataset, backbone: Backbone, engine: str, device: str, folder: Path):
        self.dataset, self.backbone, self.engine, self.device = dataset, backbone, engine, device
        self.cache_dir = folder / f"{backbone.label}-{engine}".replace(" ", "-")

    def __call__(self) -> Rows:
        for cache in self.cache_dir.glob("*/*.h5"):
            cache.unlink()
        running = Running(self.device, self.engine)
        done = extract_features(self.dataset, self.backbone, running, cache_dir=self.cache_dir)
        if any("torch" in note for note in done.notes) and self.engine != "torch":
            raise PipelineError(" ".join(done.notes))
        with done.open() as cache:
            return dict(zip(cache.paths, cache.read_rows(), strict=True))

    def accuracy(self, dataset: Dataset) -> float:
        """Val accuracy of the logistic head on features of a data set, extracted unless they are there."""
        done = extract_features(dataset, self.backbone, Running(self.device, self.engine), cache_dir=self.cache_dir)
        run = train_head("logistic", features=done.path, runs_dir=self.cache_dir / "runs", name="logistic")
        return run.metrics["splits"]["val"]["accuracy"]

    def bounds(self) -> list[float]:
        """Images a second without a gap: with one core busy and with all, or of a GPU's slowest stage."""
        if self.device == "cpu":
            return [stages.bound(self.dataset, self.backbone, self.engine, self.cache_dir, busy)
                    for busy in (1, available_cores())]
        found = {name: rate for name, rate, _ in stages.accelerator_stages(self.dataset, self.backbone, self.device)}
        return [min(found["decode"], found["transfer"], found["forward"]), float("nan")]


class Command:
    """A whole command in a process of its own."""

    def __init__(self, words: list[str], cache_dir: Path, keep: bool = True):
        self.words, self.cache_dir, self.keep = words, cache_dir, keep

    def __call__(self) -> Rows:
        for path in self.cache_dir.glob("*"):
            if path.name != "engines" or not self.keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        subprocess.run(self.words, check=True, capture_output=True)
        with h5py.File(next(self.cache_dir.rglob("*.h5"))) as file:
            return dict(enumerate(file["features"][:]))


def enlarged(folder: Path, scratch: Path, megapixels: float, count: int = 24) -> Path:
    """Write some photos of each class anew, so large and with a camera's grain, as JPEG files; return their folder."""
    rng, classes = np.random.default_rng(0), sorted(path for path in folder.glob("*/*") if path.is_dir())
    for path in (each for place in classes for each in sorted(place.glob("*.jpg"))[: -(-count // len(classes))]):
        with Image.open(path) as image:
            factor = (megapixels * 1e6 / image.width / image.height) ** 0.5
            large = image.convert("RGB").resize((round(image.width * factor), round(image.height * factor)), 1)
        grain = rng.normal(0, 4, (large.height, large.width, 1))
        place = scratch / "large" / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8)).save(place, quality=92)
    return scratch / "large"


def turns(names: list[str], given: argparse.Namespace, folder: Path) -> tuple[dict[str, list[float]], dict[str, Rows]]:
    """Let each way run in turn; one that fails is told and left out."""
    rows: dict[str, Rows] = {}

    def run(name: str) -> float:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            taken, rows[name] = process.submit(measured, name, given, folder).result()
        return taken

    return in_turn({name: partial(run, name) for name in names}, given.repeat, skip_failing=True), rows


def measured(name: str, given: argparse.Namespace, folder: Path) -> tuple[float, Rows]:
    """Run one way in this process, which has only imported what the ways use; return its seconds and rows."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report to its maker
    for module in ("torchvision.datasets", "timm.data", "img2vec_pytorch", "embetter.vision", "lightly.data",
                   "openvino"):  # fmt: skip
        with suppress(Exception):
            import_module(module)
    way = all_ways(given, folder)[name]
    begin = time.perf_counter()
    rows = way()
    return time.perf_counter() - begin, rows


def all_ways(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Rows]]:
    """Return every way to get features by its name."""
    plain = resolve(given.backbone, given.weights)
    if given.commands:
        return commands(given, folder)
    dataset, found = load_dataset(str(given.folder), cache_dir=folder), dict[str, Callable[[], Rows]]()
    found |= peers.ways(given.folder, plain, given.device, folder)
    variants = CPU if given.device == "cpu" else GPU
    if given.megapixels:
        variants = [(*kind, settings) for *kind, _ in variants for settings in ({}, {"fast_decode": True})]
    for precision, engine, settings in variants:
        with suppress(EngineError):  # what it takes is not installed
            backbone = resolve(given.backbone, given.weights, precision=precision, **settings)
            name = " ".join(("ours", precision, engine, *(word for word in ("fast_decode", "nvjpeg")
                                                          if word in (*settings, *settings.values()))))
            found[name] = Ours(dataset, backbone, engine, given.device, folder)
    return found


def commands(given: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Rows]]:
    """Return whole commands by name."""
    network = ["--backbone", given.backbone, *(["--weights", given.weights] if given.weights else [])]
    script, there = [sys.executable, peers.__file__, str(given.folder), *network], folder / "tutorial"
    found = {"tutorial": Command([*script, "--device", given.device, "--to", str(there / "features.h5")], there)}
    for precision, engine, _ in CPU if given.device == "cpu" else GPU:
        for kind in ("cold", "warm"):
            place = folder / f"{precision}-{engine}-{kind}"
            words = [sys.executable, "-m", "pipeline", "extract", "--data", str(given.folder), *network, "--engine",
                     engine, "--precision", precision, "--device", given.device, "--cache-dir", str(place)]
            found[f"ours {precision} {engine} {kind}"] = Command(words, place, keep=kind == "warm")
    return found


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
    options.add_argument("--only", nargs="*", default=[], help="ways whose name contains one of these words")
    options.add_argument("--also", type=Path, metavar="FOLDER", help="another folder to tell val accuracy on")
    options.add_argument("--megapixels", type=float, help="enlarge a few photos to so many, and run on those")
    options.add_argument("--commands", action="store_true", help="whole commands instead")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.megapixels:
            given.folder = enlarged(given.folder, Path(folder), given.megapixels)
        compare(given, Path(folder))


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    ways = all_ways(given, folder)
    names = [name for name in ways if any(word in name for word in given.only or [""])
             and (ASKED_FOR not in name or given.only)]
    ours = {name: way for name, way in ways.items() if isinstance(way, Ours)}
    print(f"{given.backbone}, {given.device}, {available_cores()} cores, load {os.getloadavg()[0]:.1f}, torch "
          f"{torch.__version__}")
    if given.device != "cpu":
        print(torch.cuda.get_device_name(given.device))
        for name, way in ours.items():
            print(name, *(f"  {stage:9}{rate:12,.0f} images/s  {remark}" for stage, rate, remark in
                          stages.accelerator_stages(way.dataset, way.backbone, given.device)), sep="\n")
    seconds, rows = turns(names, given, folder)
    also = load_dataset(str(given.also), cache_dir=folder) if given.also else None
    reference = rows.get("ours float32 torch", {})
    first = statistics.median(seconds["tutorial"]) if seconds.get("tutorial") else float("nan")
    print(f"{'':32}{'seconds':>9}{'images/s':>10}{'x tutorial':>12}", *map("{:>7}".format, (
        "bound", "busy", "val", "also")), " cosine")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name:32}{middle:9.2f}{len(rows[name]) / middle:10.1f}{first / middle:12.2f}"
              f"{figures(ours.get(name), also)}  {agreement(rows[name], reference)}", flush=True)


def figures(own: Ours | None, also: Dataset | None) -> str:
    """Return the columns on ways of our own."""
    if own is None:
        return 32 * " "
    accuracies = [f"{own.accuracy(dataset):8.4f}" if dataset else 8 * " " for dataset in (own.dataset, also)]
    return "".join([*(f"{rate:8.0f}" for rate in own.bounds()), *accuracies])


if __name__ == "__main__":
    main()
