"""Heads on a million rows of 1,280 float16 features, streamed from the file: time and peak memory of each command.

Usage: python benchmarks/million.py [--rows N] [--folder DIR] [--max-memory 4GB] [--heads ridge,lda,logistic,linear]

Features are made up (ten classes, correlated, sorted by class as folders give them): 2.6 GB on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.store import CacheWriter, Spec

DIMENSION, CLASSES = 1280, 10
EXTRA = {"linear": ["--epochs", "2", "-b", "256", "--lr", "0.003"]}


def make(path: Path, rows: int) -> None:
    """Write a cache of made-up features through the store's own writer."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, DIMENSION)).astype(np.float32)
    centres = rng.normal(size=(CLASSES, DIMENSION)).astype(np.float32) / 8
    labels = np.arange(rows) * CLASSES // rows
    splits = np.where(np.arange(rows) % 20 == 0, "val", "train")
    digests = np.zeros((rows, 16), np.uint8)
    digests[:, :8] = np.arange(rows, dtype=np.int64)[:, None].view(np.uint8)
    meta = {"dataset": "million", "root": "images", "backbone": "made", "label": "made", "description": {}}
    with CacheWriter.open(path, Spec({"architecture": "made"})) as writer:
        for number, positions in enumerate(writer.plan(digests).blocks):
            noise = rng.normal(size=(len(positions), DIMENSION)).astype(np.float32)
            hidden = rng.normal(size=(len(positions), 64)).astype(np.float32)
            features = centres[labels[positions]] + hidden @ mixing / 4 + noise + 1
            writer.commit(number, features.astype(np.float16), {})
        writer.finish(paths=[f"{row:07d}.jpg" for row in range(rows)], labels=labels, splits=splits,
                      classes=tuple(f"class {name}" for name in range(CLASSES)), meta=meta).close()


CHILD = """
import resource, sys, time
from pipeline.cli import main
begin = time.perf_counter()
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - begin, file=sys.stderr)
raise SystemExit(code)
"""


def main() -> None:
    """Make the cache if need be, train each head in a process of its own, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "million-rows")
    parser.add_argument("--max-memory", default="4GB")
    parser.add_argument("--heads", default="ridge,lda,logistic,linear")
    options = parser.parse_args()
    path = options.folder / f"rows-{options.rows}.h5"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        make(path, options.rows)
        print(f"made {path} in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    print(f"{options.rows:,} x {DIMENSION} float16, {path.stat().st_size / 1e9:.2f} GB; load {os.getloadavg()[0]:.1f}")
    print("head      seconds  of them training  peak memory GB  val accuracy")
    for head in options.heads.split(","):
        words = ["train-head", "--features", str(path), "--head", head, "--max-memory", options.max_memory,
                 "--runs-dir", str(options.folder / "runs"), "--json", *EXTRA.get(head, [])]
        done = subprocess.run([sys.executable, "-c", CHILD, *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        run = json.loads(done.stdout)["runs"][0]
        peak, seconds = done.stderr.split()[-2:]
        print(f"{head:9} {float(seconds):7.0f} {run['seconds']['train']:17.0f} {int(peak) / 1e9:15.2f} "
              f"{run['splits']['val']['accuracy']:13.4f}{'' if run['streamed'] else '  (in memory)'}", flush=True)


if __name__ == "__main__":
    main()
