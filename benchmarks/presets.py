"""The presets of `finetune` side by side on several data sets, at several lengths, with several seeds.

    python benchmarks/presets.py DATA... [--presets tutorial,one-cycle] [--epochs 1,3,10] [--seeds 0,1,2]

Prints a table in Markdown, row by row: accuracy over the seeds (mean, least and most), seconds of the whole command
(median). The last epoch's weights are scored, so that no accuracy on val was chosen by looking at val. Rows whose runs
are in --runs-dir already are taken from there: an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import pipeline
from pipeline import Run
from pipeline.finetuning.settings import PRESETS
from pipeline.runs.scores import ranked

PROBE = "frozen features, `logistic`"
HEADER = ("data", "epochs", "preset", "accuracy", "least and most", "n", "seconds")


def trained(data: str, preset: str, epochs: int, seed: int, options: argparse.Namespace) -> Run:
    """Return the run of a preset, trained now or found."""
    told = "logistic" if preset == PROBE else f"{preset}-{epochs}-epochs"
    name = f"{Path(data).stem}-{options.backbone}-{told}-seed-{seed}"
    if (options.runs_dir / name / "metrics.json").is_file():
        return Run.open(name, options.runs_dir)
    common = {"name": name, "runs_dir": options.runs_dir, "cache_dir": options.cache_dir, "seed": seed}
    if preset == PROBE:
        pipeline.extract(data, options.backbone, cache_dir=options.cache_dir)
        return pipeline.train_head("logistic", data, options.backbone, **common)
    begun = any((options.runs_dir / name / "checkpoints").glob("*.json"))
    return pipeline.finetune(data, options.backbone, preset=preset, epochs=epochs, select="last", resume=begun,
                             log=lambda line: print(f"  {name}: {line}", file=sys.stderr), **common)


def row(data: str, preset: str, epochs: int, options: argparse.Namespace) -> tuple[str, ...]:
    """Return the cells of a row."""
    runs = [trained(data, preset, epochs, seed, options) for seed in options.seeds]
    scored = [ranked([run.metrics])[0] for run in runs]
    found = [metrics["splits"][metrics["split"]]["accuracy"] for metrics in scored]
    return (Path(data).stem, str(epochs or ""), preset, f"{statistics.mean(found):.3f}",
            f"{min(found):.3f}-{max(found):.3f}", f"{scored[0]['splits'][scored[0]['split']]['n']} x {len(found)}",
            f"{statistics.median(metrics['seconds']['total'] for metrics in scored):.0f}")  # fmt: skip


def numbers(text: str) -> list[int]:
    """Return numbers that have commas between."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="as --data of `pipeline finetune`")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--presets", default=",".join(PRESETS), type=partial(str.split, sep=","))
    parser.add_argument("--epochs", default="1,3,10", type=numbers)
    parser.add_argument("--seeds", default="0,1,2", type=numbers)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/presets"))
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    options = parser.parse_args()
    print(f"{options.backbone}, last epoch\n\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for data in options.data:
        rows = [(PROBE, 0), *((preset, epochs) for epochs in options.epochs for preset in options.presets)]
        for preset, epochs in rows:
            print(f"| {' | '.join(row(data, preset, epochs, options))} |", flush=True)


if __name__ == "__main__":
    main()
