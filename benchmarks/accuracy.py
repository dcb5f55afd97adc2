"""Held-out accuracy of every head with its settings swept, or of the default head, on several caches: Markdown tables.

    python benchmarks/accuracy.py CACHE.h5 … [--heads all] [--folds 5]
    python benchmarks/accuracy.py CACHE.h5 … --default [--rows 10000]

A head's settings are chosen by cross-validation on train alone (`train-head --sweep`, default grids); accuracy is that
on the test split, or val where there is no test. Finished heads are kept in --runs-dir, so an interrupted table goes
on where it stopped. A line a head goes to stderr with its seconds.

`--default`: `logistic` as it comes, beside scikit-learn's LogisticRegression as it comes (C = 1, no scaling) and with
its C chosen by LogisticRegressionCV (17 penalties, 5 folds, log loss) on the same train rows, as they are and
standardised: accuracy / log loss / calibration error on test, or val.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pipeline.core.errors import RunError
from pipeline.evaluation.metrics import evaluate
from pipeline.heads import HEADS
from pipeline.runs.run import Run, file_safe
from pipeline.stage_two.fit import HELD_OUT, Sweep
from pipeline.stage_two.train import train_head


def main() -> None:
    """Sweep every head on every cache and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--heads", default="all")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--default", action="store_true")
    parser.add_argument("--rows", type=int, default=10_000)
    options = parser.parse_args()
    if options.default:
        return default_table(options.caches, options.rows)
    heads = list(HEADS) if options.heads == "all" else options.heads.split(",")
    table = {head: [cell(path, head, options.folds, options.runs_dir) for path in options.caches] for head in heads}
    names = [path.parent.name for path in options.caches]
    print(f"| head, swept | {' | '.join(names)} |\n" + "| --- " * (len(names) + 1) + "|")
    for head, cells in table.items():
        print(f"| `{head}` | {' | '.join(cells)} |")


def default_table(paths: list[Path], most: int) -> None:
    """Print the default head beside scikit-learn's, a line a cache."""
    import warnings

    import numpy as np
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipeline.heads import make_head
    from pipeline.store import FeatureCache

    warnings.filterwarnings("ignore")
    chosen = {"Cs": np.logspace(-5, 3, 17), "cv": 5, "scoring": "neg_log_loss", "max_iter": 1000, "n_jobs": -1}
    print("| | ours | C | scikit-learn as it comes | its best C | standardised, its best C |\n" + "| --- " * 6 + "|")
    for path in paths:
        with FeatureCache.open(path) as cache:
            X, y = cache.split("train", view=0)
            X_test, y_test = cache.split("test" if (cache.splits == "test").any() else "val", view=0)
        some = np.random.default_rng(0).permutation(len(y))[:most]
        X, y, X_test = X[some].astype(np.float32), y[some], X_test.astype(np.float32)
        models = {"ours": make_head("logistic"), "as it comes": LogisticRegression(),
                  "best": LogisticRegressionCV(**chosen),
                  "standardised": make_pipeline(StandardScaler(), LogisticRegressionCV(**chosen))}
        cells = []
        for name, model in models.items():
            begin = time.perf_counter()
            scores = evaluate(y_test, model.fit(X, y).predict_proba(X_test))
            print(f"{path.parent.name}, {name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr)
            cells.append(f"{scores['accuracy']:.3f} / {scores['log_loss']:.3f} / {scores['ece']:.3f}")
        cells.insert(1, f"{models['ours'].C_:.2g}")
        print(f"| {path.parent.name}, {len(y):,} of train | {' | '.join(cells)} |", flush=True)


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
