"""Held-out accuracy of every head with its settings swept, on several caches: a Markdown table.

    python benchmarks/accuracy.py CACHE.h5 … [--heads all] [--folds 5]

A head's settings are chosen by cross-validation on train alone (`train-head --sweep`, default grids); accuracy is that
on the test split, or val where there is no test. Finished heads are kept in --runs-dir, so an interrupted table goes
on where it stopped. A line a head goes to stderr with its seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipeline.errors import RunError
from pipeline.experiment import train_head
from pipeline.fitting import HELD_OUT, Sweep
from pipeline.heads import HEADS
from pipeline.runs import Run, file_safe


def main() -> None:
    """Sweep every head on every cache and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--heads", default="all")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    heads = list(HEADS) if options.heads == "all" else options.heads.split(",")
    table = {head: [cell(path, head, options.folds, options.runs_dir) for path in options.caches] for head in heads}
    names = [path.parent.name for path in options.caches]
    print(f"| head, swept | {' | '.join(names)} |\n" + "| --- " * (len(names) + 1) + "|")
    for head, cells in table.items():
        print(f"| `{head}` | {' | '.join(cells)} |")


def cell(path: Path, head: str, folds: int, runs_dir: Path) -> str:
    """Return accuracy with its interval, from a finished run or a new one."""
    name = file_safe(f"{path.parent.name}-{path.stem}-{head}-{folds}")
    begin = time.perf_counter()
    try:
        run = Run.open(runs_dir / name)
    except RunError:
        sweep = Sweep(folds=folds) if HEADS[head].grid else None
        run = train_head(head, features=path, sweep=sweep, name=name, runs_dir=runs_dir)
        print(f"{name}: {time.perf_counter() - begin:.0f} s, {run.config()['head']['settings']}", file=sys.stderr)
    scores = next(run.metrics["splits"][split] for split in HELD_OUT if split in run.metrics["splits"])
    low, high = scores["accuracy_ci95"]
    return f"{scores['accuracy']:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    main()
