"""Training above a cut, from cached activations, against heads and against the same training from images.

    python benchmarks/cuts.py DATA [--cuts last-2,half,auto] [--epochs 3] [--batch-size 4] [--lr 0.001]
        [--schedule step] [--views 1] [--augmentation NAME] [--no-whole] [--no-images] [--repeat 1]

DATA is what `--data` takes. Every way is the commands that a user would type, from no cache at all; ways take turns.
Printed are medians of whole seconds and of those that the run tells (extraction and training, without start-up and
the final scoring), and their ratio to training the same blocks from images; accuracy with its interval; and paired
comparisons with the best.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from turns import in_turn, medians


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as place:
        ways = ways_of(options)
        folder = Path(place)
        found = in_turn({name: partial(timed, commands, name, folder, options.data) for name, commands in ways.items()},
                        options.repeat)
        print_table(ways, {name: medians(rows) for name, rows in found.items()}, folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--cuts", default="last-2,half,auto", help="values of --unfreeze, with commas between")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--schedule", default="step")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--augmentation", default="none", help="from images; of cached views where they are several")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--images", action=argparse.BooleanOptionalAction, default=True,
                        help="train above each cut from images too")
    parser.add_argument("--repeat", type=int, default=1)
    return parser.parse_args()


def ways_of(options: argparse.Namespace) -> dict[str, list[list[str]]]:
    """Return the commands of each way."""
    training = ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size), "--lr", str(options.lr),
                "--schedule", options.schedule]
    augmented = ["--augmentation", options.augmentation]
    views = ["--views", str(options.views), *(augmented if options.views > 1 else [])]
    ways = {f"logistic, {layer}": [["extract", "--layer", layer], ["train-head", "--layer", layer, "--sweep"]]
            for layer in ("pooled", "stages")}
    for cut in options.cuts.split(","):
        ways[f"{cut}, cached"] = [["finetune", "--cached", "--unfreeze", cut, *views, *training]]
        if options.images:
            ways[f"{cut}, images"] = [["finetune", "--unfreeze", cut, *augmented, *training]]
    if options.whole:
        ways["whole, images"] = [["finetune", *augmented, *training]]
    return ways


def timed(commands: list[list[str]], name: str, folder: Path, data: str) -> tuple[float, float]:
    """Run a way's commands with an empty cache; return seconds of the commands, and of extraction and training."""
    run = "".join(letter if letter.isalnum() else "-" for letter in name)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        begin = time.perf_counter()
        for words in commands:
            more = ["--data", data, "--cache-dir", cache]
            if words[0] != "extract":
                more += ["--runs-dir", str(folder / "runs"), "--name", run, "--overwrite"]
            pipeline([*words, *more])
        seconds = time.perf_counter() - begin
    metrics = json.loads((folder / "runs" / run / "metrics.json").read_text())
    print(f"{name}: {seconds:.1f} s, {scores(metrics)}", flush=True)
    return seconds, metrics["seconds"]["total"]


def pipeline(words: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def scores(metrics: dict[str, Any]) -> str:
    split = next(name for name in ("test", "val", "train") if name in metrics["splits"])
    figures = metrics["splits"][split]
    low, high = figures["accuracy_ci95"]
    return f"{figures['accuracy']:.4f} ({low:.3f}-{high:.3f}) on {figures['n']:,} {split}"


def print_table(ways: dict[str, list[list[str]]], seconds: dict[str, list[float]], folder: Path) -> None:
    compared = json.loads(pipeline(["compare", "--runs-dir", str(folder / "runs"), "--json"]))["runs"]
    runs = {run["name"]: run for run in compared}
    print("\n| | accuracy | whole commands | of the same from images | extraction and training | likewise | against "
          "the best |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in ways:
        run = runs["".join(letter if letter.isalnum() else "-" for letter in name)]
        base = seconds.get(f"{name.split(',')[0]}, images") if name.endswith("cached") else None
        shares = [f"{own / whole:.2f}" for own, whole in zip(seconds[name], base, strict=True)] if base else ["", ""]
        whole, told = seconds[name]
        against = run.get("versus_best")
        verdict = "the best" if not against else (
            f"{100 * against['difference']:+.1f} points, " + ("distinguishable" if against["distinguishable"] else
                                                              "not distinguishable"))
        print(f"| {name} | {scores(run)} | {whole:.1f} s | {shares[0]} | {told:.1f} s | {shares[1]} | {verdict} |")


if __name__ == "__main__":
    main()
