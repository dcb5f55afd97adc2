"""Runs as text: a table of several, a block about one, their differences; and the commands `runs` and `evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError
from .flags import Parser, add_command, add_data, add_limits, add_running, limits_of
from .printing import (
    print_beside_bars,
    print_json,
    print_notes,
    printable,
    progress_bars,
    readable_age,
    working,
)
from .tables import fitting, print_table

MOST_CLASSES = 10  # that are listed


def add_commands(verbs: Any) -> None:
    """Add ``runs ls|show|rm`` and ``evaluate``."""
    scored = add_command(verbs, "evaluate", evaluate, "score runs on labelled images that they were not made from")
    scored.add_argument("runs", nargs="+", metavar="RUN", help="names or folders; several are compared")
    add_data(scored, splitting=False, positional=False)
    scored.add_argument("--split", metavar="NAME", help="which images (default: test, else val, else all)")
    scored.add_argument("--report", action="store_true", help="also write a page about each run on these images")
    scored.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where runs are (default: runs)")
    add_running(scored, seed=False)
    add_limits(scored)
    runs = add_command(verbs, "runs", list_all, "list, show or remove runs")
    own = runs.add_subparsers(metavar="ls|show|rm", parser_class=Parser)
    ls = add_command(own, "ls", list_all, "list all runs, the newest first")
    for parser in (runs, ls):
        parser.add_argument("--data", metavar="DATA", help="only runs of this data set: its name, or what --data was")
    show = add_command(own, "show", show_one, "show what a run scored, and what made it")
    show.add_argument("run", metavar="RUN", help="name or folder")
    rm = add_command(own, "rm", remove, "remove runs, with their weights")
    rm.add_argument("runs", nargs="+", metavar="RUN", help="names")
    rm.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for parser in (runs, ls, show, rm):
        parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                            help="where runs are (default: runs)")


def list_all(options: argparse.Namespace) -> None:
    from ..runs.run import list_runs
    from ..runs.scores import ranked, runs_of

    runs = list_runs(options.runs_dir) if options.data is None else list(runs_of(options.data, options.runs_dir))
    rows = {run["name"]: run for run in ranked({**run.metrics, "name": run.name} for run in runs)}
    ages = {run.name: time.time() - (run.path / "metrics.json").stat().st_mtime for run in runs}
    newest = [rows[run.name] for run in reversed(runs)]
    if options.json:
        print_json({"runs": [{**run, "age": round(ages[run["name"]], 1)} for run in newest]})
    elif newest:
        print_tables(newest, {name: readable_age(age) for name, age in ages.items()})
    else:
        print(f"no runs in {options.runs_dir}")


def show_one(options: argparse.Namespace) -> None:
    from ..runs.run import Run
    from ..runs.scores import ranked

    run = Run.open(options.run, options.runs_dir)
    (metrics,) = ranked([{**run.metrics, "name": run.name}])
    if options.json:
        return print_json({**metrics, "path": str(run.path), "config": run.config()})
    print_one(metrics)
    for split, scores in metrics["splits"].items():
        low, high = scores["accuracy_ci95"]
        print(f"  {split + ':':10} {scores['accuracy']:.4f} ({low:.3f}-{high:.3f}), n = {scores['n']:,}, "
              f"log loss {scores['log_loss']:.4f}")
    print(f"  folder     {printable(run.path)}")


def remove(options: argparse.Namespace) -> None:
    from ..runs.run import Run, remove_run

    runs = [Run.open(name, options.runs_dir) for name in dict.fromkeys(options.runs)]
    if strangers := [str(run.path) for run in runs if run.path.parent.resolve() != options.runs_dir.resolve()]:
        raise PipelineError(f"Not below {str(options.runs_dir)!r}: {', '.join(strangers)}. Give --runs-dir.")
    for run in runs:
        if not options.dry_run:
            remove_run(run)
        if not options.json:
            print(f"{'would remove' if options.dry_run else 'removed'} {printable(run.path)}")
    if options.json:
        print_json({"removed": [str(run.path) for run in runs], "dry_run": options.dry_run})


def evaluate(options: argparse.Namespace) -> None:
    from ..runs.run import Run
    from ..stage_two.evaluate import evaluate_runs

    found = evaluate_runs(
        options.runs, options.data, split=options.split, limits=limits_of(options),
        cache_dir=options.cache_dir, dataset_name=options.dataset_name, runs_dir=options.runs_dir,
        batch_size=options.batch_size, workers=options.workers, device=options.device, engine=options.engine,
        progress=progress_bars(),
    )  # fmt: skip
    plain = [name for name in options.runs if Run.open(name, options.runs_dir).metrics.get("tta")]
    print_notes([f"{', '.join(plain)}: scored on plain images here, without averaging over views"] if plain else [])
    for one in found:
        unknown = ", ".join(f"{name} ({count:,})" for name, count in one.unknown.items())
        print_notes([f"{one.run} does not know these classes, whose images are left out: {unknown}"] if unknown else [])
        print_notes([f"no image of these classes of {one.run}: {', '.join(one.absent)}"] if one.absent else [])
    print_notes(f"{path}: {reason}" for path, reason in list(found[0].failures.items())[:5])
    if options.json:
        return print_json({"evaluations": [{**dataclasses.asdict(one), "predictions": str(one.path),
                                            "path": str(one.path)} for one in found]})
    print(f"{printable(found[0].dataset)}, {found[0].split}")
    print_table(("run", "images", "accuracy (95 %)", "balanced", "log loss"), [
        (one.run, f"{one.scores['n']:,}", _accuracy(one.scores), f"{one.scores['balanced_accuracy']:.4f}",
         f"{one.scores['log_loss']:.4f}") for one in found], ("run",))  # fmt: skip
    if len(found) == 1:
        _print_classes(found[0])
    print_verdicts([{"name": one.run, "versus_best": one.versus} for one in found if one.versus], options)
    print("\n".join(f"predictions: {printable(one.path)}" for one in found))
    if options.report:
        from ..reports import write_report

        for one in found:
            with working(f"Writing the report of {one.run} on {one.dataset}"):
                path = write_report(one, cache_dir=options.cache_dir)
            print_notes([f"look at {path}"])


def _print_classes(found: Any) -> None:
    """Print the classes of least recall, each with what it was most often taken for."""
    classes, per_class, confusion = found.classes, found.scores["per_class"], found.scores.get("confusion")
    there = sorted((each["recall"], label) for label, each in enumerate(per_class) if each["n"])
    rows = []
    for recall, label in there[:MOST_CLASSES]:
        wrong = [] if confusion is None else [count if at != label else 0 for at, count in enumerate(confusion[label])]
        taken = max(wrong, default=0)
        rows.append((classes[label], f"{per_class[label]['n']:,}", f"{recall:.3f}",
                     f"{classes[wrong.index(taken)]} ({taken})" if taken else ""))
    print(f"\nclasses of least recall, {len(rows)} of {len(there)}")
    print_table(("class", "images", "recall", "taken for"), rows, ("taken for", "class"))
    print()


def print_runs(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print runs as `ranked` returns them."""
    if options.json:
        print_json({"runs": runs})
    elif len(runs) == 1:
        print_one(runs[0])
    else:
        print_tables(runs)


def print_trained(run: Any) -> None:
    """Print a line about a head that has just been trained, one of several."""
    from ..runs.scores import ranked

    (metrics,) = ranked([run.metrics])
    scores = metrics["splits"][metrics["split"]]
    print_beside_bars(f"{metrics['head']}: accuracy {scores['accuracy']:.4f} on {scores['n']:,} {metrics['split']} "
                      f"images, {metrics['seconds']['train']:.2f} s")


def print_one(run: dict[str, Any]) -> None:
    """Print a block about one run."""
    scores, seconds = run["splits"][run["split"]], run["seconds"]
    low, high = scores["accuracy_ci95"]
    chosen = {"val": ", the epoch or settings chosen on val", "cv": ", settings chosen by cross-validation on train"}
    print(printable(run["name"]))
    print(f"  accuracy   {scores['accuracy']:.4f} (95 % interval {low:.3f}-{high:.3f}) on {scores['n']:,} "
          f"{run['split']} images{chosen.get(run['selection'], '')}")
    print(f"  besides    balanced accuracy {scores['balanced_accuracy']:.4f}, log loss {scores['log_loss']:.4f}")
    print(f"  made by    {_what(run)} on {printable(run['features'])}, {printable(run['dataset'])}"
          f"{': ' + printable(run['told']) if run.get('told') else ''}")
    print(f"  took       {seconds['extract']:.1f} s to extract, {seconds['train']:.2f} s to train "
          f"{run['trainable_parameters']:,} numbers")


def print_verdicts(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print below the table which differences are more than chance."""
    for field, what in (("versus_best", "the best"), ("versus_baseline", "the baseline")):
        others = {found["run"]: None for run in runs if (found := run.get(field))}
        for other in () if options.json else others:
            group = [run for run in runs if run.get(field) and run[field]["run"] == other]
            print(f"\nagainst {printable(other)}, {what}, on the same images"
                  + (f"; intervals and verdicts corrected for {len(group)} comparisons" if len(group) > 1 else ""))
            print_table(("run", "points", "95 % interval", "verdict", "images to tell"),
                        [_difference(run["name"], run[field]) for run in group], ("run",))


def _difference(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    from ..evaluation.comparison import rounded

    if not found["n"]:
        return (name, "", "", "no image in common", "")
    low, high = found["difference_ci95"]
    known = "not distinguishable"
    if found["distinguishable"]:
        known = f"{'better' if found['difference'] > 0 else 'worse'} (p = {found['p_value_corrected']:.2g})"
    needed = found["images_needed"] if not found["distinguishable"] else None
    return (name, f"{100 * found['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", known,
            f"{rounded(needed):,}" if needed else "")


def _accuracy(scores: dict[str, Any]) -> str:
    low, high = scores["accuracy_ci95"]
    return f"{scores['accuracy']:.4f} ({low:.3f}-{high:.3f})"


def _what(run: dict[str, Any]) -> str:
    return run.get("head") or run["strategy"]


def print_tables(runs: Sequence[dict[str, Any]], ages: dict[str, str] | None = None) -> None:
    """Print a table for each data set; what all of its runs share stands above it."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["dataset"], []).append(run)
    for number, (dataset, group) in enumerate(groups.items()):
        shared, columns = [f"data set {printable(dataset)}"], {"run": [run["name"] for run in group]}
        for title, values in (
            ("features", [run["features"] for run in group]),
            ("on", [f"{run['split']} {run['splits'][run['split']]['n']:,}" for run in group]),
        ):
            if len(set(values)) == 1:
                shared.append(f"{title} {printable(values[0])}")
            else:
                columns[title] = values
        told = [_settings(run) for run in group]
        columns |= {"settings": told} if any(told) else {}
        scores = [run["splits"][run["split"]] for run in group]
        columns["accuracy (95 %)"] = [_accuracy(each) for each in scores]
        columns["log loss"] = [f"{each['log_loss']:.4f}" for each in scores]
        if any(run["selection"] == run["split"] for run in group):  # its figures are optimistic
            columns["chosen by"] = [run["selection"] for run in group]
        columns["seconds"] = [f"{run['seconds']['total']:.1f}" for run in group]
        columns |= {"age": [ages[run["name"]] for run in group]} if ages else {}
        print(("\n" if number else "") + fitting(" · ".join(shared)))
        print_table(tuple(columns), list(zip(*columns.values(), strict=True)), ("features", "settings", "run"))


def _settings(run: dict[str, Any]) -> str:
    """Return what tells a run apart besides its name."""
    what = _what(run)
    return ", ".join(filter(None, ["" if what in run["name"] else what, run.get("told", "")]))
