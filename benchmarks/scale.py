"""What a large data set costs, step by step: seconds and peak memory of each, and how both grow with the rows.

    python benchmarks/scale.py [--rows 100000,1000000] [--part-rows 100000] [--heads lda] [--folder DIR] [--keep]

For each size: that many image files are made (a tile of a photograph, 16 x 16 pixels, each with a number of its own
behind the image, so that no two have the same content), listed and hashed, listed again, planned, written in parts of
`--part-rows` rows, brought up to date with nothing and with 1,000 new images, verified, and heads are trained on rows
streamed from the parts. Each step is a process of its own, so its peak memory is its own.

No network is run: rows (1,280 of float16, ten classes, sorted by class as folders give them) are made up and go through
the store's own writer and reader; what forward passes cost is `extract.py`'s business. The memory of listing is
part of every step that needs the listing. 1,000,000 rows take 4 GB for the files and up to 8 GB for the cache.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIMENSION, CLASSES, MORE = 1280, 10, 1000
EXTRA = {"linear": ["--epochs", "2", "-b", "256", "--lr", "0.003"]}


def main() -> None:
    """Run all steps for all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--part-rows", type=int, default=100_000)
    parser.add_argument("--heads", default="lda")
    parser.add_argument("--max-memory", default="1GB", help="of training; what takes more is streamed")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "scale")
    parser.add_argument("--keep", action="store_true", help="leave files and caches there")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given)
        return
    sizes = [int(size) for size in given.rows.split(",")]
    found = [measure(given, size) for size in sizes]
    head = "  ".join(f"{size:>11,} rows  peak GB" for size in sizes)
    print(f"\n{'step':28}{head}{'  seconds x  memory x' if len(sizes) > 1 else ''}")
    for step in found[0]:
        cells = "  ".join(f"{one[step]['seconds']:13.1f} s {one[step]['peak'] / 1e9:8.2f}" for one in found)
        first, last = found[0][step], found[-1][step]
        growth = f"{last['seconds'] / first['seconds']:11.1f}{last['peak'] / first['peak']:10.1f}"
        print(f"{step:28}{cells}{growth if len(sizes) > 1 else ''}  {last.get('remark', '')}")


def measure(given: argparse.Namespace, rows: int) -> dict[str, dict]:
    """Return what each step took with so many rows."""
    steps = ["make the files", "list and hash", "list again", "plan", "write", "nothing new", f"{MORE} new", "verify"]
    found = {}
    folder = given.folder / str(rows)
    for step in [*steps, *(f"train {head}" for head in given.heads.split(","))]:
        words = [sys.executable, __file__, "--step", step, "--rows", str(rows), "--part-rows", str(given.part_rows),
                 "--folder", str(folder), "--max-memory", given.max_memory]
        begin = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found[step] = json.loads(done.stdout.splitlines()[-1])
        print(f"{rows:>9,} {step:20} {time.perf_counter() - begin:8.1f} s  load {os.getloadavg()[0]:.1f}  "
              f"{done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)  # fmt: skip
    if not given.keep:
        shutil.rmtree(folder)
    return found


def run_step(given: argparse.Namespace) -> None:
    """Run one step, and print what it took as JSON."""
    folder, rows, (verb, *words) = given.folder, int(given.rows), given.step.split()
    if verb == "train":
        report(train(folder, words[0], given.max_memory))
        return
    begin = time.perf_counter()
    remark, inner = {
        "make": lambda: make_files(folder / "images", rows),
        "list": lambda: (f"{len(listing(folder)):,} images", 0),
        "plan": lambda: plan(folder, given.part_rows),
        "write": lambda: write(folder, given.part_rows),
        "nothing": lambda: write(folder, given.part_rows),
        str(MORE): lambda: more(folder, rows, given.part_rows),
        "verify": lambda: verify(folder),
    }[verb]()
    report({"seconds": inner or time.perf_counter() - begin, "remark": remark})


def report(found: dict) -> None:
    """Print what a step took, with the peak of this process's memory."""
    print(json.dumps({**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def make_files(root: Path, rows: int, first: int = 0) -> tuple[str, float]:
    """Write image files of different content, the last of ten classes getting whatever is more than before."""
    from PIL import Image

    from pipeline.data.phototiles import cut, find_photographs

    photographs, _ = find_photographs()
    tiles = []
    for photograph in photographs.values():
        for tile in cut(photograph):
            tile.resize((16, 16), Image.Resampling.BILINEAR).save(kept := io.BytesIO(), "JPEG", quality=80)
            tiles.append(kept.getvalue())
    for name in range(CLASSES):
        (root / f"class-{name}").mkdir(parents=True, exist_ok=True)
    for number in range(first, first + rows):
        name = min(number * CLASSES // rows, CLASSES - 1)
        path = root / f"class-{name}" / f"{number:08d}.jpg"
        path.write_bytes(tiles[number % len(tiles)] + number.to_bytes(8, "little"))
    return f"{len(tiles)} tiles", 0


def listing(folder: Path):
    """List the images and their digests."""
    from pipeline.data import load_dataset

    return load_dataset(str(folder / "images"), cache_dir=folder / "cache", val_fraction=0.05)


def opened(folder: Path, part_rows: int):
    """Return the cache's writer."""
    from pipeline.store import CacheWriter, Spec, cache_path

    spec = Spec({"architecture": "made"})
    return CacheWriter.open(cache_path(folder / "cache", "images", "made", spec), spec, part_rows=part_rows)


def plan(folder: Path, part_rows: int) -> tuple[str, float]:
    """Plan as `extract` does; the seconds are the planning's alone."""
    dataset = listing(folder)
    begin = time.perf_counter()
    with opened(folder, part_rows) as writer:
        blocks = len(writer.plan(dataset.digests).blocks)
    return f"{blocks} blocks", time.perf_counter() - begin


def write(folder: Path, part_rows: int) -> tuple[str, float]:
    """Bring the cache up to date as `extract` does; the seconds are the store's alone."""
    dataset = listing(folder)
    begin = time.perf_counter()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2048, DIMENSION)).astype(np.float32)
    centres = rng.normal(size=(CLASSES, DIMENSION)).astype(np.float32) / 8
    meta = {"dataset": "images", "root": str(dataset.root), "backbone": "made", "label": "made", "description": {}}
    with opened(folder, part_rows) as writer:
        found = writer.plan(dataset.digests)
        for number, positions in enumerate(found.blocks):
            mixed = noise[rng.integers(2048, size=len(positions))] + noise[rng.integers(2048, size=len(positions))]
            writer.commit(number, (centres[dataset.labels[positions]] + mixed).astype(np.float16))
        committed = time.perf_counter()
        with writer.finish(paths=dataset.paths, labels=dataset.labels, splits=dataset.splits, classes=dataset.classes,
                           meta=meta) as cache:  # fmt: skip
            remark = f"{len(found.to_compute):,} rows in {committed - begin:.0f} s, then {len(cache.pieces)} parts"
    return remark, time.perf_counter() - begin


def more(folder: Path, rows: int, part_rows: int) -> tuple[str, float]:
    """Add images and bring the cache up to date."""
    make_files(folder / "images", MORE, rows)
    return write(folder, part_rows)


def verify(folder: Path) -> tuple[str, float]:
    """Check every bit."""
    from pipeline.store import list_caches, verify_cache

    entries = list_caches(folder / "cache")
    problems = [problem for entry in entries for problem in verify_cache(entry.path)]
    return f"{entries[0].bytes / 1e9:.2f} GB, {len(problems)} problems", 0


def train(folder: Path, head: str, max_memory: str) -> dict:
    """Train a head by the command itself."""
    import contextlib

    from pipeline.cli import main as command
    from pipeline.store import list_caches

    (entry,) = list_caches(folder / "cache")
    words = ["train-head", "--features", str(entry.path), "--head", head, "--max-memory", max_memory, "--runs-dir",
             str(folder / "runs"), "--json", *EXTRA.get(head, [])]  # fmt: skip
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        if command(words):
            raise SystemExit("training failed")
    run = json.loads(said.getvalue())["runs"][0]
    remark = f"val {run['splits']['val']['accuracy']:.4f}, {'streamed' if run.get('streamed') else 'in memory'}"
    return {"seconds": time.perf_counter() - begin, "remark": remark}


if __name__ == "__main__":
    main()
