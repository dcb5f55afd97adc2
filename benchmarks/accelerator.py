"""Stage one on an accelerator: what each piece can do by itself, and what whole commands do.

    python benchmarks/accelerator.py [--device cuda|cpu] [--images 12000] [--folder DIR] [--json FILE]
                                     [--backbones efficientnet_lite0,resnet50,vit_b_16]
                                     [--parts bounds,commands,cores,finetune]

Photographs of about 480 x 360 are made from those that ship with scikit-image and scikit-learn, each a crop of its own,
turned in colour and saved as JPEG; or DIR is taken. No network is needed: other networks than EfficientNet-Lite0 have
random weights, for the speed.

`bounds`: decoding (and with Pillow resizing too) on threads and in processes, resizing on the device, nvJPEG, and the
forward pass of each network, its first batch told apart. `commands`: `pipeline extract` at each precision and decoder,
in a process of its own: images a second as it says, its share of the bound (the lesser of decoding and forward, where
`bounds` were taken), seconds of the whole command, processor cores and the GPU's share busy, agreement (cosine, mean
and least) with float32 on Pillow's pixels. `cores`: `extract --device cpu` with one worker and with all. `finetune`:
the tutorial's loop and ours with EfficientNet-Lite0 on 256 images, in batches of 4 and of 32, in turn: seconds of the
first epoch, and of a later one.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from finetune import ours, tutorial
from PIL import Image
from turns import in_turn

from pipeline.backbones import resolve
from pipeline.data import Dataset, jpeg, load_dataset
from pipeline.data.decoding import decode_array, decode_by_pillow
from pipeline.data.device_resize import Decoded, Plan, resized
from pipeline.data.phototiles import find_photographs
from pipeline.data.transforms import Transform
from pipeline.engines.embedding import available_cores
from pipeline.engines.torch_engine import TorchEngine
from pipeline.stage_one import decoding_processes

SIZE = (480, 360)
SOME = 2048  # images that a bound is taken on
TRAINED, EPOCHS = 256, 4  # images an epoch of training, and epochs
PACKAGES = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "image-feature-pipeline")
found: dict[str, Any] = {}


def main() -> None:
    """Read the words, run the parts, print and keep what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--backbones", default="efficientnet_lite0,resnet50,vit_b_16")
    parser.add_argument("--parts", default="bounds,commands,cores,finetune")
    options = parser.parse_args()
    parts, backbones = options.parts.split(","), options.backbones.split(",")
    describe(options.device)
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder or made(Path(place) / "photos", options.images)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if "bounds" in parts:
            bounds(files[:SOME], options.device, backbones)
            if decoding_processes.possible():
                shared_memory(load_dataset(str(folder), cache_dir=place))
        if "commands" in parts:
            commands(folder, Path(place), options.device, backbones)
        if "cores" in parts:
            cores(folder, Path(place))
        if "finetune" in parts:
            finetuning(folder, Path(place), options.device)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def tell(name: str, **values: Any) -> None:
    """Print a line at once, and keep it."""
    found[name] = values
    print(f"{name:58s} " + "  ".join(f"{key} {value:,.4g}" if isinstance(value, float) else f"{key} {value}"
                                     for key, value in values.items()), flush=True)


def describe(device: str) -> None:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    card = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "CPU"
    tell("machine", device=card, cores=available_cores(), python=platform.python_version(), **versions)


def made(folder: Path, count: int) -> Path:
    """Write so many photographs, each unlike all others, in two classes; return the folder."""
    begin = time.perf_counter()
    for name in "ab":
        (folder / "train" / name).mkdir(parents=True)
    shares = np.array_split(np.arange(count), max(1, min(count // 8, available_cores())))
    with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn")) as pool:
        list(pool.map(write_photographs, [folder] * len(shares), shares))
    tell("photographs", images=count, seconds=time.perf_counter() - begin)
    return folder


def write_photographs(folder: Path, numbers: np.ndarray) -> None:
    """Write crops of the photographs at hand, of their own place, colours and size."""
    photographs = [image for image in find_photographs()[0].values() if min(image.size) >= 300]
    for number in numbers.tolist():
        rng = np.random.default_rng(number)
        image = photographs[number % len(photographs)]
        width, height = SIZE[0] + int(rng.integers(-40, 41)), SIZE[1] + int(rng.integers(-30, 31))
        part = [int(side * rng.uniform(0.5, 1)) for side in image.size]
        left, top = (int(rng.integers(0, side - own + 1)) for side, own in zip(image.size, part, strict=True))
        crop = image.crop((left, top, left + part[0], top + part[1])).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(crop) * rng.uniform(0.7, 1.1, 3) + rng.normal(0, 4, (height, width, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / "train" / "ab"[number % 2] / f"{number:06d}.jpg", quality=88)


def rate(count: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return count / (time.perf_counter() - begin)


@cache
def transform() -> Transform:
    """The default network's."""
    return resolve().transform


def by_pillow(content: bytes) -> np.ndarray:
    """Decode and resize as before there was simplejpeg."""
    return transform()(decode_by_pillow(content))


def several_by_pillow(contents: list[bytes]) -> int:
    return sum(len(by_pillow(content)) > 0 for content in contents)


def bounds(files: list[Path], device: str, backbones: list[str]) -> None:
    """What each piece can do by itself."""
    contents, threads = [file.read_bytes() for file in files], available_cores()
    for count in sorted({1, max(1, threads // 2), threads}):
        some = contents[: max(64, len(contents) * count // threads)]
        with ThreadPoolExecutor(count) as pool:
            tell(f"decode, simplejpeg, {count} threads",
                 images_s=rate(len(some), lambda: list(pool.map(decode_array, some))))  # noqa: B023
    with ThreadPoolExecutor(threads) as pool:
        tell(f"markers alone, {threads} threads", images_s=rate(len(contents), lambda: list(pool.map(
            jpeg.read_header, contents))))
        tell(f"decode and resize, Pillow, {threads} threads",
             images_s=rate(len(contents), lambda: list(pool.map(by_pillow, contents))))
    shares = [contents[start::threads] for start in range(threads)]
    with ProcessPoolExecutor(threads, mp_context=get_context("spawn")) as processes:
        list(processes.map(several_by_pillow, [contents[:1]] * threads))
        tell(f"decode and resize, Pillow, {threads} processes",
             images_s=rate(len(contents), lambda: list(processes.map(several_by_pillow, shares))))
    decoded = [one for one in map(resolve().preprocessing.decoded, contents[:256]) if isinstance(one, Decoded)]
    resizing(decoded, device)
    if device.startswith("cuda"):
        batched_nvjpeg(contents, device)
    for name in backbones:
        for precision in ("float32", "bfloat16"):
            forward(name, precision, device)


def shared_memory(dataset: Dataset) -> None:
    """Decoding as `extract` does for an accelerator: in processes, laid out in memory that is shared."""
    some, count = np.arange(min(SOME, len(dataset))), available_cores()
    parts = [dataset.part(part) for part in np.array_split(some, -(-len(some) // 128))]
    processes = decoding_processes.DecodingProcesses(resolve().preprocessing, count, 128)

    def turn(part: Dataset) -> int:
        with processes.decoded(part) as found:
            return found.staged.count

    try:
        with ThreadPoolExecutor(len(processes.slots)) as pool:
            list(pool.map(turn, parts))  # the processes are there, and know these sizes of images
            tell(f"decode and lay out, {count} processes",
                 images_s=rate(len(some), lambda: list(pool.map(turn, parts))))
    finally:
        processes.close()


def resizing(decoded: list[Decoded], device: str) -> None:
    """Resizing a batch that lies on the device."""
    size, own_transform = min(64, len(decoded)), transform()
    most = [max(one.pixels.shape[side] for one in decoded) for side in (0, 1)]
    batch = np.zeros((size, *most, 3), np.uint8)
    for into, one in zip(batch, decoded, strict=False):
        into[: one.pixels.shape[0], : one.pixels.shape[1]] = one.pixels
    there, own = torch.from_numpy(batch).to(device), [one.resizing for one in decoded[:size]]
    plan = Plan.of(own, own_transform.crop, own_transform.interpolation)

    def turn() -> None:
        resized(there, plan).flatten()[0].item()

    turn()
    repeats = 2 if device == "cpu" else 20
    pixels = resized(there, plan).cpu().numpy()
    expected = np.stack([own_transform(Image.fromarray(one.pixels)) for one in decoded[:size]])
    tell("resize on the device", images_s=rate(size * repeats, lambda: [turn() for _ in range(repeats)]),
         values_unlike_pillows=float((pixels != expected).mean()),
         most_levels=int(np.abs(pixels.astype(int) - expected).max()))


def batched_nvjpeg(contents: list[bytes], device: str) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]

    def turn() -> None:
        for start in range(0, len(tensors), 64):
            decode_jpeg(tensors[start : start + 64], ImageReadMode.RGB, device=device)
        torch.cuda.synchronize()

    decode_jpeg(tensors[:64], ImageReadMode.RGB, device=device)
    tell("decode, nvJPEG, batches of 64", images_s=rate(len(tensors), turn))


def forward(name: str, precision: str, device: str) -> None:
    """The forward pass of a prepared network alone, and what its first batch took."""
    weights = None if name.startswith("efficientnet_lite") else "random"
    backbone = resolve(name, weights, precision=precision)
    begin = time.perf_counter()
    engine = TorchEngine(backbone, device)
    seconds = time.perf_counter() - begin
    shape, synchronise = (engine.batch_size, *backbone.transform.crop, 3), torch.cuda.synchronize
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=engine.device)
    turns = 30 if device.startswith("cuda") else 1

    def work() -> None:
        with torch.inference_mode():
            for _ in range(turns):
                engine.network(pixels)
            if device.startswith("cuda"):
                synchronise()

    run = engine._owner.submit(work).result if engine._owner else work
    run()
    again = engine._owner.submit if engine._owner else (lambda work: work())
    begin = time.perf_counter()
    done = again(work)
    _ = done.result() if engine._owner else None
    tell(f"forward, {name}, {precision}, batches of {shape[0]}",
         images_s=turns * shape[0] / (time.perf_counter() - begin), prepared_in_s=seconds)


class Utilisation:
    """The GPU's share of time in which it computes, sampled while a command runs."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._stop = threading.Event()
        try:
            import pynvml

            pynvml.nvmlInit()
            self._read = lambda: pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0)).gpu
        except Exception:  # no such library, or no such card: then nothing is told
            self._read = None

    def __enter__(self) -> Utilisation:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while self._read and not self._stop.wait(0.1):
            self.samples.append(self._read())


def extract(folder: Path, place: Path, *words: str) -> dict[str, Any]:
    """Run the command into an empty cache; return what it says and what it took."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "extract", "--data", str(folder), "--json", "--cache-dir", str(place)]
    with Utilisation() as busy:
        done = subprocess.run([*command, *words], capture_output=True, text=True)
    whole, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own = sorted(busy.samples)[len(busy.samples) // 2 :]  # the busier half: start-up is not told here
    return {**said, "whole": whole, "cores": used / whole, "gpu": float(np.mean(own)) if own else None}


def commands(folder: Path, place: Path, device: str, backbones: list[str]) -> None:
    """Whole commands, in the order of precision and decoder."""
    for name in backbones:
        weights = () if name.startswith("efficientnet_lite") else ("--weights", "random")
        ways = [("float32", "pillow"), ("bfloat16", "pillow")]
        ways += [("bfloat16", "nvjpeg")] if device.startswith("cuda") else []
        exact = None
        for number, (precision, decoder) in enumerate(ways):
            words = ["--backbone", name, *weights, "--precision", precision, "--device", device, "--decoder", decoder]
            engine = ("--engine", "torch") if device == "cpu" else ()
            done = extract(folder, place / f"{name}{number}", *words, *engine)
            with h5py.File(done["path"]) as file:
                rows = file["features"][:].astype(np.float64)
            exact = rows if exact is None else exact
            cosine = (rows * exact).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact, axis=1)
            tell(f"extract, {name}, {precision}, {decoder}", images_s=float(done["images_per_second"]),
                 of_bound=of_bound(float(done["images_per_second"]), name, precision, decoder),
                 seconds=float(done["seconds"]), whole_command_s=done["whole"], cores_busy=done["cores"],
                 gpu_percent=done["gpu"], cosine_mean=float(cosine.mean()), cosine_least=float(cosine.min()))


def of_bound(images_s: float, name: str, precision: str, decoder: str) -> float | None:
    """Return the share of what decoding and the network alone give; None where these were not measured."""
    starts = "decode, nvJPEG" if decoder == "nvjpeg" else "decode and lay out", f"forward, {name}, {precision}"
    bounds = [max((values["images_s"] for key, values in found.items() if key.startswith(start)), default=None)
              for start in starts]
    return None if None in bounds else images_s / min(bounds)


def finetuning(folder: Path, place: Path, device: str) -> None:
    """Training epochs of the tutorial's loop and ours."""
    dataset, where = load_dataset(str(folder), cache_dir=place), torch.device(device)
    few = np.linspace(0, len(dataset) - 1, min(TRAINED, len(dataset))).astype(int)
    dataset = dataset.part(few)
    for size in (4, 32):
        loops = {"the tutorial's": tutorial(folder, len(few), size, min(4, available_cores()), where)}
        for precision in ("float32", "bfloat16"):
            loops[f"ours, {precision}"] = ours(dataset, size, precision, where)
        in_turn({name: loop.run for name, loop in loops.items()}, EPOCHS)
        usual = {name: statistics.median(row[0] for row in loop.rows[1:]) for name, loop in loops.items()}
        for name, loop in loops.items():
            tell(f"training, batches of {size}, {name}", first_epoch_s=loop.rows[0][0], later_epoch_s=usual[name],
                 times=usual["the tutorial's"] / usual[name])


def cores(folder: Path, place: Path) -> None:
    """The same machine without its accelerator: one worker, and all."""
    one, rates = place / "one", {}
    for number, workers in enumerate((1, available_cores())):
        limit = ("--limit", "600") if workers == 1 else ()
        done = extract(folder, one / str(number), "--device", "cpu", "--engine", "torch", "--precision", "bfloat16",
                       "--workers", str(workers), *limit)
        rates[workers] = float(done["images_per_second"])
        tell(f"extract on the processor, {workers} workers", images_s=rates[workers], cores_busy=done["cores"])
    tell("all workers against one", times=rates[available_cores()] / rates[1])


if __name__ == "__main__":
    main()
