"""Stage two against training through the network, and the sweep against scikit-learn's own.

    python benchmarks/heads.py --data FOLDER [--epochs 25] [--repeat 1] [--heads logistic,ridge,lda]
    python benchmarks/heads.py --sweep FILE.h5 [--rows 10000]
    python benchmarks/heads.py --start FILE.h5 [--start-repeat 5]

`--data` (train/<class>/ and val/<class>/): the transfer-learning tutorial's frozen training (its augmentation, batches
of 4, every image through the network in every epoch, val after each) against `extract` and `train-head` from an empty
cache, and against each further head, both before and after it in every turn. Every command in a process of its own, its
start included. Of fewer than 25 epochs the rest is extrapolated, and the output says so.

`--sweep`: 45 penalties in 5 folds by `logistic` against LogisticRegressionCV on all cores, on the same standardised
train rows, penalties and folds; the accuracy of both on the cache's test split (or val), and how far apart they are:
the largest gap to scikit-learn's objective, and to its log loss where it reached the same objective.

`--start`: whole `train-head` commands against `python -c "import torch"`, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

from turns import in_turn, medians

TUTORIAL = """
import json, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2
from pipeline.backbones import resolve

folder, epochs = sys.argv[1], int(sys.argv[2])
backbone = resolve()
t = backbone.transform
end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(t.mean, t.std)]
views = {"train": v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *end]),
         "val": v2.Compose([v2.Resize(256), v2.CenterCrop(224), *end])}
data = {split: datasets.ImageFolder(f"{folder}/{split}", views[split],
                                    is_valid_file=lambda path: path.lower().endswith((".jpg", ".jpeg", ".png")))
        for split in views}
loaders = {split: DataLoader(data[split], 4, shuffle=True, num_workers=4) for split in data}
network = backbone.network()
for parameter in network.parameters():
    parameter.requires_grad = False
model = nn.Sequential(network, nn.Linear(1280, len(data["train"].classes)))
optimizer, criterion = torch.optim.SGD(model[1].parameters(), lr=0.001, momentum=0.9), nn.CrossEntropyLoss()
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
seconds, best = [], 0.0
for _ in range(epochs):
    begin = time.perf_counter()
    for split in views:
        model.train(split == "train")
        right = 0
        for inputs, labels in loaders[split]:
            optimizer.zero_grad()
            with torch.set_grad_enabled(split == "train"):
                outputs = model(inputs)
                loss = criterion(outputs, labels)
                if split == "train":
                    loss.backward()
                    optimizer.step()
            right += int((outputs.argmax(1) == labels).sum())
        if split == "train":
            scheduler.step()
    best = max(best, right / len(data["val"]))
    seconds.append(time.perf_counter() - begin)
print(json.dumps({"epochs": seconds, "accuracy": best}))
"""


# modules compiled beforehand, as installed ones are
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(*words: str) -> tuple[float, dict]:
    """Run a command; return its seconds, start included, and the JSON that it printed."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, json.loads(done.stdout or "{}")


def against_the_tutorial(data: str, epochs: int, repeat: int, heads: list[str]) -> None:
    """Print a table of whole commands, medians of `repeat` turns: ours, the tutorial's, ours again."""
    ours: dict[str, list[tuple[float, float, float]]] = {}
    theirs: list[tuple[float, float]] = []
    for turn in range(repeat):
        extract_and_train(data, heads, ours)
        seconds, found = run("-c", TUTORIAL, data, str(epochs))
        theirs.append((seconds + (25 - epochs) * statistics.median(found["epochs"]), found["accuracy"]))
        extract_and_train(data, heads, ours)
        print(f"turn {turn + 1} of {repeat}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    usual = statistics.median(seconds for seconds, _ in theirs)
    how = "measured in full" if epochs == 25 else f"{epochs} epochs measured, the rest extrapolated"
    print(f"tutorial's frozen training, 25 epochs ({how}): {usual:.1f} s, val accuracy {theirs[0][1]:.4f}")
    print("| | seconds | times faster | its fit alone, s | times faster | val accuracy |\n" + "| --- " * 6 + "|")
    for name, rows in ours.items():
        whole, fit, _ = medians(rows)
        print(f"| {name} | {whole:.2f} | {usual / whole:.0f} | {fit:.3f} | {usual / fit:.0f} | {rows[0][2]:.4f} |")


def extract_and_train(data: str, heads: list[str], rows: dict[str, list[tuple[float, float, float]]]) -> None:
    """Add (seconds of the whole, seconds of the fit, accuracy) to each row: all heads, the first one first of all."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--data", data, "--cache-dir", f"{folder}/cache", "--json"]
        extract, _ = run("-m", "pipeline", "extract", *where)
        for number, head in enumerate([heads[0], *heads]):
            words = ["train-head", "--head", head, *where, "--runs-dir", f"{folder}/runs"]
            whole, done = run("-m", "pipeline", *words)
            metrics = done["runs"][0]
            name = f"further head: {head}" if number else f"first time: extract, then {head}"
            rows.setdefault(name, []).append((whole + (0 if number else extract), metrics["seconds"]["train"],
                                              metrics["splits"]["val"]["accuracy"]))


def against_logistic_regression_cv(path: str, n: int) -> None:
    """Print seconds and held-out accuracy of both sweeps over the same penalties, rows and folds, and how far apart
    their solutions are."""
    import numpy as np
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.preprocessing import StandardScaler

    from pipeline.heads import HEADS, sweep_head
    from pipeline.heads.sweep import cross_validation_folds
    from pipeline.store import FeatureCache

    with FeatureCache.open(path) as cache:
        X, y = cache.split("train", view=0)
        X_test, y_test = cache.split("test" if (cache.splits == "test").any() else "val", view=0)
    chosen = np.random.default_rng(0).permutation(len(y))[:n]
    X, y = X[chosen].astype(np.float32), y[chosen]
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test.astype(np.float32))
    Cs, folds = HEADS["logistic"].grid["C"], cross_validation_folds(y, 5, 0)
    print(f"{len(y):,} x {X.shape[1]}, {len(Cs)} penalties, 5 folds; load {os.getloadavg()[0]:.1f}")
    begin = time.perf_counter()
    ours = sweep_head("logistic", X, y, grid={"C": Cs}, fixed={"scaling": "none"})
    print(f"sweep: {time.perf_counter() - begin:.1f} s, held-out accuracy "
          f"{(ours.head.predict(X_test) == y_test).mean():.4f}, C {ours.settings['C']:.2g}, "
          f"{ours.choice['without_figures']} rows without figures", flush=True)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LogisticRegressionCV(Cs=list(Cs), cv=folds, n_jobs=-1).fit(X, y)
    print(f"LogisticRegressionCV: {time.perf_counter() - begin:.1f} s, held-out accuracy "
          f"{(theirs.predict(X_test) == y_test).mean():.4f}, C {np.ravel(theirs.C_)[0]:.2g}", flush=True)
    gaps, losses = apart(X, y, folds, Cs, theirs, [row["log_loss"] for row in ours.rows])
    worst = max(gaps, key=lambda C: gaps[C])
    print(f"objective above scikit-learn's, over all penalties and folds: at most {100 * gaps[worst]:+.2g} % "
          f"(C {worst:.2g}); below it by up to {-100 * min(gaps.values()):.2g} %, where its iterations did not suffice")
    if losses:
        print(f"log loss in cross-validation, of the {len(losses)} penalties where scikit-learn's objective is within "
              f"0.5 % of ours: at most {100 * max(losses.values()):.2g} % apart")


def apart(X, y, folds, Cs, theirs, ours_lost) -> tuple[dict[float, float], dict[float, float]]:
    """Return, by C, by what share our objective is above scikit-learn's (the worst fold), and by what share the log
    losses of rows left out differ where both have the same objective, to 0.5 %, in every fold."""
    import numpy as np

    from pipeline.heads import make_head

    paths = theirs.coefs_paths_
    paths = np.stack([paths[label] for label in sorted(paths)], axis=2) if isinstance(paths, dict) else paths
    alike = np.ones(len(Cs), bool)

    def lost(rows, coef, intercept):
        scores = X[rows] @ coef.T.astype(X.dtype) + intercept
        scores = np.hstack([np.zeros_like(scores), scores]) if len(coef) == 1 else scores
        scores = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
        return np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(rows)), y[rows]]

    def objective(C, fold, coef, intercept):
        return C * lost(folds[fold][0], coef, intercept).sum() + np.square(coef).sum() / 2

    def as_theirs(coef, intercept):  # of two classes scikit-learn has the difference of both
        return (np.diff(coef, axis=0), np.diff(intercept)) if len(coef) == 2 else (coef, intercept)

    gaps: dict[float, float] = {}
    left_out = np.zeros(len(Cs))
    settings = [{"C": C} for C in Cs]
    for fold, at, head in make_head("logistic", scaling="none").fit_folds(X, y, folds, settings, [range(len(Cs))] * 5):
        own, C = paths[fold, at], Cs[at]
        coef, intercept = own[:, :-1], own[:, -1]
        if head.converged_:
            ours = objective(C, fold, *as_theirs(head.coef_, head.intercept_))
            share = ours / objective(C, fold, coef, intercept) - 1
            gaps[C] = max(share, gaps.get(C, -1.0))
            alike[at] &= abs(share) < 0.005
        left_out[at] += lost(folds[fold][1], coef, intercept).sum() / len(y)
    return gaps, {C: abs(ours / theirs_lost - 1) for C, ours, theirs_lost, done
                  in zip(Cs, ours_lost, left_out, alike, strict=True) if done and ours is not None}


def seconds_of(*words: str) -> tuple[float, float]:
    """Run a command, and return its seconds and CPU seconds."""
    before = os.times()
    seconds, _ = run(*words)
    after = os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def against_importing_torch(path: str, repeat: int, heads: list[str]) -> None:
    """Print whole commands on cached rows beside the import, medians; CPU seconds tell more on a busy machine."""
    with tempfile.TemporaryDirectory() as runs:
        commands = {"import torch": ["-c", "import torch"]} | {
            head: ["-m", "pipeline", "train-head", "--features", path, "--head", head, "--runs-dir", runs, "--json"]
            for head in heads}
        found = in_turn({name: partial(seconds_of, *words) for name, words in commands.items()}, repeat)
    print("| | seconds | CPU seconds |\n| --- | --- | --- |")
    for name, pairs in found.items():
        whole, cpu = medians(pairs)
        print(f"| {name} | {whole:.2f} | {cpu:.2f} |")


def main() -> None:
    """Read the words and run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--start-repeat", type=int, default=5)
    parser.add_argument("--heads", default="logistic,ridge,lda,nearest-centroid")
    parser.add_argument("--sweep", metavar="FILE")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--start", metavar="FILE")
    options = parser.parse_args()
    if options.data:
        folder = str(Path(options.data).absolute())
        against_the_tutorial(folder, options.epochs, options.repeat, options.heads.split(","))
    if options.sweep:
        against_logistic_regression_cv(options.sweep, options.rows)
    if options.start:
        against_importing_torch(options.start, options.start_repeat, options.heads.split(","))


if __name__ == "__main__":
    main()
