"""Strategies of `pipeline label` against random order, answered by the truth, and whether its estimate can be believed.

    python benchmarks/labelling.py CACHE... [--seeds 10] [--step 4] [--rounds 50] [--aside 0.25]

CACHE is a cache file of labelled images. A quarter of them, or --aside, is kept aside for the truth, which is known no
better than so many images tell it: intervals hold it the more rarely the fewer they are. Printed for each cache and
strategy, in Markdown: the answers it takes to come within one point of the accuracy that all labels give (mean over
seeds; "over" where one did not get there and counts with the answers it had), as a share of those in random order; how
often the 95 % interval that the session tells in any of --rounds holds the accuracy on the images kept aside, and how
often one from the images that the strategy chose would; and the usual milliseconds from an answer to the head that
knows it. A fifth of the answers is on images drawn at random, as in a session.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import pipeline
from pipeline.evaluation.metrics import wilson_interval
from pipeline.heads import make_head
from pipeline.labelling import LabelSession
from pipeline.labelling.session import _components
from pipeline.store import FeatureCache

HEADER = ("data", "strategy", "answers", "of random order", "estimates", "hold the truth", "of chosen ones", "ms")


def round_trip(
    rows: np.ndarray, labels: np.ndarray, names: list[str], aside: np.ndarray, strategy: str, step: int, seed: int,
    target: float, rounds: int, folder: Path,
) -> tuple[int, list[bool], list[bool], list[float]]:  # fmt: skip
    """Label for some rounds; return the answers it took to the target, which estimates held, and seconds of answers.

    Where the target was not reached, the answers are those that were given, below zero.
    """
    pool = np.setdiff1d(np.arange(len(rows)), aside)
    order = np.random.default_rng(seed).permutation(pool)
    shuffled = rows[order] + np.random.default_rng(seed).normal(scale=1e-6, size=rows[order].shape).astype(np.float32)
    paths = [str(number) for number in range(len(order))]
    cache = pipeline.cache_embeddings(shuffled, None, paths=paths, dataset_name=f"pool-{seed}", cache_dir=folder).path
    held, misled, seconds, reached = list[bool](), list[bool](), list[float](), 0
    with LabelSession(cache, folder / f"{strategy}-{seed}.csv", strategy=strategy, seed=seed) as session:
        test = rows[aside] + (session.rows[0] - shuffled[0])
        for _ in range(rounds):
            questions = session.next(step)
            if not questions:
                break
            by_class: dict[int, list[str]] = {}
            for question in questions:
                by_class.setdefault(int(labels[order[question.row]]), []).append(question.path)
            for label, asked in by_class.items():
                begin = time.perf_counter()
                session.answer(asked, names[label])
                seconds.append(time.perf_counter() - begin)
            done = np.array([int(path) for path in session.answers])
            known = labels[order[done]]
            if len(np.unique(known)) < 2:
                continue
            true = float((make_head("ridge").fit(session.rows[done], known).predict(test) == labels[aside]).mean())
            found = session.estimate()
            if found.accuracy is not None and found.low is not None and found.high is not None:
                held.append(found.low <= true <= found.high)
                chosen = len(done) - found.n
                low, high = wilson_interval(round((found.chosen_accuracy or 0) * chosen), max(chosen, 1))
                misled.append(not low <= true <= high)
            reached = reached or (len(done) if true >= target else 0)
    return reached or -len(done), held, misled, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--step", type=int, default=4, help="images asked for at a time")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--aside", type=float, default=0.25, help="share of the images that is kept aside")
    parser.add_argument("--strategies", default="random,badge,margin,need", type=partial(str.split, sep=","))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for path in options.caches:
        with FeatureCache.open(path) as cache:
            labelled = np.flatnonzero(cache.labels >= 0)
            rows, labels, names = _components(cache.read_rows(labelled, view=0)), cache.labels[labelled], cache.classes
        aside = np.random.default_rng(0).permutation(len(rows))[: int(options.aside * len(rows))]
        pool = np.setdiff1d(np.arange(len(rows)), aside)
        whole = make_head("ridge").fit(rows[pool], labels[pool])
        target = float((whole.predict(rows[aside]) == labels[aside]).mean()) - 0.01
        usual = 0.0
        for strategy in options.strategies:
            with tempfile.TemporaryDirectory() as folder:
                tried = [round_trip(rows, labels, list(names), aside, strategy, options.step, seed, target,
                                    options.rounds, Path(folder)) for seed in range(options.seeds)]  # fmt: skip
            answers = statistics.mean(abs(each[0]) for each in tried)
            more = "over " if any(each[0] < 0 for each in tried) else ""
            usual = answers if strategy == "random" else usual
            held, misled = ([one for each in tried for one in each[place]] for place in (1, 2))
            slow = statistics.median(one for each in tried for one in each[3])
            told = (path.parent.name, strategy, f"{more}{answers:.0f}", f"{answers / usual:.2f}" if usual else "",
                    str(len(held)), f"{np.mean(held):.3f}" if held else "",
                    f"{1 - np.mean(misled):.3f}" if misled else "", f"{1000 * slow:.0f}")
            print(f"| {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
