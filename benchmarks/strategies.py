"""Frozen features against every way to fine-tune, on one data set: accuracy, seconds, and what is trained.

    python benchmarks/strategies.py DATA [--epochs 5] [--runs-dir DIR] [--only probe,whole]

Prints a table in Markdown, row by row. The last epoch's weights are scored, so that no accuracy on val was chosen by
looking at val. Rows whose run is in DIR already are taken from there: an interrupted table goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import pipeline
from pipeline import FinetuneSettings, Run
from pipeline.finetuning import STRATEGIES as KNOWN
from pipeline.runs.scores import ranked

STRATEGIES = ("head-only", "partial", "discriminative", "whole", "lp-ft", "scratch")
HEADER = ("strategy", "accuracy", "95 % interval", "n", "seconds", "of which images to features", "trained parameters")


def trained(name: str, settings: FinetuneSettings, options: argparse.Namespace) -> Run:
    """Return the run of a row, trained now or found."""
    chosen = f"{settings.epochs}-epochs-batch-{settings.batch_size}-lr-{settings.lr}-seed-{settings.seed}"
    run_name = f"{Path(options.data).name}-{options.backbone}-{name}-{chosen}"
    if (options.runs_dir / run_name / "metrics.json").is_file():
        return Run.open(run_name, options.runs_dir)
    common = {"name": run_name, "runs_dir": options.runs_dir, "cache_dir": options.cache_dir}
    if name == "probe":
        pipeline.extract(options.data, options.backbone, cache_dir=options.cache_dir)
        return pipeline.train_head("logistic", options.data, options.backbone, seed=settings.seed, **common)
    begun = any((options.runs_dir / run_name / "checkpoints").glob("*.json"))
    return pipeline.finetune(options.data, options.backbone, replace(settings, strategy=name), resume=begun,
                             log=lambda line: print(f"  {name}: {line}", file=sys.stderr), **common)


def row(name: str, run: Run) -> tuple[str, ...]:
    """Return the cells of a row."""
    metrics = ranked([run.metrics])[0]
    scores, seconds = metrics["splits"][metrics["split"]], metrics["seconds"]
    low, high = scores["accuracy_ci95"]
    return (name, f"{scores['accuracy']:.3f}", f"{low:.3f}-{high:.3f}", f"{metrics['split']} {scores['n']}",
            f"{seconds['total']:.1f}", f"{seconds['extract']:.1f}", f"{metrics['trainable_parameters']:,}")


def main() -> None:
    usual = FinetuneSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="as --data of `pipeline finetune`")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("-b", "--batch-size", type=int, default=usual.batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="rows with commas between (default: all)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    options = parser.parse_args()
    names = options.only.split(",") if options.only else ["probe", *STRATEGIES]
    if unknown := set(names) - {"probe", *KNOWN}:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; known: probe, {', '.join(KNOWN)}")
    settings = FinetuneSettings(epochs=options.epochs, lr=options.lr, batch_size=options.batch_size,
                                seed=options.seed, select="last")
    print(f"{options.data}, {options.backbone}, {settings.epochs} epochs, batches of {settings.batch_size}, "
          f"learning rate {settings.lr}, last epoch\n")
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for name in names:
        print(f"| {' | '.join(row(name, trained(name, settings, options)))} |", flush=True)


if __name__ == "__main__":
    main()
