"""Recipes: list, show and run published systems. A run types the commands that `show` prints, one after the other."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.errors import PipelineError, UnknownNameError
from ..flags import Parser, add_command
from ..printing import print_json, print_notes
from ..tables import print_table
from . import ALL, CACHED, STEPS, Recipe, load_recipe, names
from .plan import IMAGE, SHOWN, TRAINING, Settings, as_text, flags_of, overrides_of, plan

JSON_STEPS = ("finetune", CACHED, "extract", "train-head")
Execute = Callable[[Sequence[str]], str]  # runs a command, returns what it printed


class StepFailedError(PipelineError):
    """A step failed; it has said why."""


def in_own_process(words: Sequence[str]) -> str:
    """Run a command as if it were typed: it starts, imports and ends by itself, so its seconds are a user's."""
    command = [sys.executable, "-m", __package__.partition(".")[0], *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process, _passed_on(process):
        said, _ = process.communicate()
    if process.returncode:
        raise _failed(words, process.returncode)
    return said


@contextmanager
def _passed_on(process: subprocess.Popen) -> Any:
    """Let a step end in its own way, with its checkpoint written: Ctrl-C reaches it by itself, SIGTERM through us."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(words: Sequence[str], code: int) -> BaseException:
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return KeyboardInterrupt("the step says what it kept")
    error = StepFailedError(f"`pipeline {words[0]}` failed, see above.")
    error.exit_code = code
    return error


def add_commands(verbs: Any) -> None:
    """Add ``recipe list|show|run``."""
    recipe = verbs.add_parser("recipe", help="run a published system, beside its published figure")
    recipe.set_defaults(parser=recipe)
    own = recipe.add_subparsers(metavar="list|show|run", required=True, parser_class=Parser)
    add_command(own, "list", list_recipes, "list the recipes")
    for name, run, summary in (
        ("show", show_recipe, "print a recipe's published figures and its commands"),
        ("run", run_recipe, "do what the original did, and the same from cached features"),
    ):
        parser = add_command(own, name, run, summary)
        parser.usage = f"pipeline recipe {name} [--json] [--only STEP,…] NAME [any flag of its commands]"
        parser.epilog = ("Flags for data, network, strategy and folders go to every command of the recipe that has "
                         "them, another to the first of finetune, train-head, extract; --STEP.FLAG "
                         "(--extract.precision) to one. --backbone leaves out the recipe's weights and layer, "
                         "which are its own backbone's, --head its grid.")
        parser.add_argument("--only", metavar="STEP,…", help=f"only these of its commands: {', '.join(STEPS)}")
        parser.add_argument("name", metavar="NAME", help="as `recipe list` prints it, or a .toml file")
        parser.add_argument("flags", nargs=argparse.REMAINDER, metavar="…", help="replace settings of the recipe")


def list_recipes(options: argparse.Namespace) -> None:
    found = [load_recipe(name) for name in names()]
    if options.json:
        print_json({"recipes": [{"name": recipe.name, **recipe.facts} for recipe in found]})
        return
    print_table(("name", "published", "what"),
                [(recipe.name, published(recipe), recipe.facts["title"]) for recipe in found])  # fmt: skip


def show_recipe(options: argparse.Namespace) -> None:
    recipe, overrides = _asked(options, to_run=False)
    commands = [shlex.join(["pipeline", *words]) for words in plan(recipe, overrides).values()]
    if options.json:
        print_json({"name": recipe.name, **recipe.facts, "commands": commands})
        return
    facts = recipe.facts
    print(f"{recipe.name}: {facts['title']} ({facts.get('source', 'no source named')})")
    print(f"published: {published(recipe) or 'no figure'}{', ' + facts['time'] if 'time' in facts else ''}")
    print(*filter(None, [facts.get("remarks")]), *commands, sep="\n")


def published(recipe: Recipe) -> str:
    """Return the published figure as text, empty where there is none."""
    return f"{recipe.facts['accuracy']:.4f} on {recipe.facts['split']}" if "accuracy" in recipe.facts else ""


def run_recipe(options: argparse.Namespace) -> None:
    recipe, overrides = _asked(options)
    try:
        result = carry_out(recipe, overrides, in_own_process, sys.stderr if options.json else sys.stdout)
    except StepFailedError as error:
        if "weights" in recipe.settings.get(ALL, {}) and not overrides.keys() & {"backbone", "weights"}:
            only = ["--only", options.only] if options.only else []
            words = ["pipeline", "recipe", "run", recipe.name, *only, *shlex.split(as_text(overrides))]
            instead = shlex.join([*words, "--backbone", "efficientnet_lite0"])
            error.args = (f"{error} If weights could not be had: `{instead}` needs no download of them.",)
        raise
    if options.json:
        print_json(result)
        return
    print()
    print_table(("", "accuracy", "95 % interval", "on", "seconds", "network"), [_row(row) for row in result["results"]])
    if overrides:
        print(f"not the published settings: {result['changed']}")
    print_notes([*filter(None, [recipe.facts.get("remarks")]), *(f"look at {path}" for path in result["pictures"])])
    if result["runs"]:
        print_notes([f"`pipeline predict IMAGE --run {result['runs'][-1]}` classifies your own images"])


def carry_out(recipe: Recipe, overrides: Settings, execute: Execute, out: Any) -> dict[str, Any]:
    """Run a recipe's commands.

    Parameters
    ----------
    recipe : Recipe
    overrides : dict
        Flags that replace the recipe's.
    execute : callable
        Runs one command.
    out : text stream
        Takes what show and summary print.

    Returns
    -------
    dict
        `results`: a row each for the published figure, the original's way and the cached way, the latter two as far
        as they ran; `pictures`, `runs`, `commands`, `changed`.
    """
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    named: dict[str, str] = {}  # a run that is there with other settings stays, and this one's name has a number
    commands = plan(recipe, overrides)
    where = Path(next((words[words.index("--runs-dir") + 1] for words in commands.values() if "--runs-dir" in words),
                      "runs"))  # fmt: skip
    for step, words in commands.items():
        if step == "predict":
            at = words.index("--run") + 1
            words[at] = named.get(words[at], words[at])
            words[words.index(IMAGE)] = _held_out(words[at], recipe, where)[0]["path"]
        print("$", shlex.join(["pipeline", *words]), file=sys.stderr)
        begin = time.perf_counter()
        said = execute([*words, "--json"] if step in JSON_STEPS else words)
        seconds[step] = time.perf_counter() - begin
        if step in JSON_STEPS:
            found[step] = json.loads(said)
            if step in TRAINING:
                named[words[words.index("--name") + 1]] = found[step]["runs"][0]["name"]
        else:
            print(said, end="", file=out, flush=True)
    runs = {step: found[step]["runs"][0] for step in TRAINING if step in found}
    pictures = [words[words.index("--out") + 1] for step, words in commands.items() if step == "show"]
    pictures += [_draw_predictions(run["name"], recipe, where) for run in list(runs.values())[:1]]
    return {
        "recipe": recipe.name, "title": recipe.facts["title"], "results": _results(recipe, runs, seconds),
        "pictures": pictures, "runs": [run["name"] for run in runs.values()], "changed": as_text(overrides),
        "seconds": {step: round(taken, 2) for step, taken in seconds.items()},
        "commands": [shlex.join(["pipeline", *words]) for words in commands.values()],
    }  # fmt: skip


def _results(recipe: Recipe, runs: dict[str, Any], seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Return the published row, and one for each way that ran; the cached way's seconds are both its commands'."""
    known: dict[str, Any] = {key: recipe.facts[key] for key in ("accuracy", "split", "time") if key in recipe.facts}
    rows: list[dict[str, Any]] = [{"way": "published", **known}]
    if "finetune" in runs:
        rows.append(_result("as the original", recipe, runs["finetune"], seconds["finetune"]))
    if CACHED in runs:
        rows.append(_result("from cached activations", recipe, runs[CACHED], seconds[CACHED]))
    if "train-head" in runs:
        took = seconds.get("extract", 0) + seconds["train-head"]
        rows.append(_result("from cached features", recipe, runs["train-head"], took))
    return rows


def _result(way: str, recipe: Recipe, run: dict[str, Any], seconds: float) -> dict[str, Any]:
    split = recipe.facts["split"] if recipe.facts["split"] in run["splits"] else run["split"]
    scores = run["splits"][split]
    return {
        "way": way, "accuracy": scores["accuracy"], "accuracy_ci95": scores["accuracy_ci95"], "split": split,
        "n": scores["n"], "seconds": round(seconds, 2), "run": run["name"], "network": run["features"],
        "selection": run["selection"],
    }  # fmt: skip


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    interval = "{:.3f}-{:.3f}".format(*row["accuracy_ci95"]) if "n" in row else ""
    accuracy = f"{row['accuracy']:.4f}" if "accuracy" in row else "none"
    taken = f"{row['seconds']:.1f}" if "n" in row else row.get("time", "")
    return row["way"], accuracy, interval, f"{row['split']} {row.get('n', '')}", taken, row.get("network", "")


def _held_out(name: str, recipe: Recipe, runs_dir: Path) -> list[dict[str, str]]:
    """Return what a run says of the images that figures are of, each row with the image's whole `path`."""
    from ...data import place
    from ...runs.run import Run

    run = Run.open(name, runs_dir)
    root = place(run.config()["dataset"]["root"])
    rows = run.predictions(recipe.facts["split"]) or run.predictions()
    return [{**row, "path": str(root / row["filename"])} for row in rows]


def _draw_predictions(name: str, recipe: Recipe, runs_dir: Path) -> str:
    """Draw held-out images, evenly chosen, with what the run says they are; return the file."""
    from ...data import place
    from ...reports.pictures import grid, save, thumbnail

    rows = _held_out(name, recipe, runs_dir)
    chosen = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]  # classes lie one after the other
    path = runs_dir / "recipes" / f"{recipe.name}-predictions.png"
    cells = [(thumbnail(place(row["path"])), [row["prediction"], f"{float(row['prob']):.4f}, is {row['label']}"])
             for row in chosen]
    save(grid(cells, columns=3), path)
    return str(path)


def _asked(options: argparse.Namespace, to_run: bool = True) -> tuple[Recipe, Settings]:
    recipe, flags = load_recipe(options.name), _own_flags(options)
    if options.only:
        wanted = options.only.split(",")
        for step in wanted:
            if step not in recipe.steps:
                raise UnknownNameError(f"command of recipe {recipe.name}", step, recipe.steps)
        kept = {step: own for step, own in recipe.settings.items() if step in (ALL, *wanted)}
        recipe = Recipe(recipe.name, recipe.facts, kept)
    overrides = overrides_of(recipe, flags)
    takes_data = any("data" in flags_of(step) for step in recipe.steps)
    if "wanted" in recipe.facts and takes_data and "data" not in overrides:
        if not to_run:
            return recipe, {**overrides, "data": ["DATA"]}
        raise PipelineError(f"Recipe {recipe.name} needs --data: {recipe.facts['wanted']}. It cannot be downloaded.")
    return recipe, overrides


def _own_flags(options: argparse.Namespace) -> list[str]:
    """Read this command's own flags where they stand behind the recipe's name; return the others."""
    behind = Parser(prog=options.parser.prog, add_help=False)
    behind.add_argument("-h", "--help", action="store_true")
    behind.add_argument("--json", action="store_true", default=options.json)
    behind.add_argument("--only", default=options.only)
    found, flags = behind.parse_known_args(options.flags)
    if found.help:
        options.parser.parse_args(["--help"])
    options.json, options.only = found.json, found.only
    return flags
