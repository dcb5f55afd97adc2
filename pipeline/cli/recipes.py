"""Recipes: list, show and run published systems. A run types the commands that `show` prints, one after the other."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ..errors import PipelineError, UnknownNameError
from ..recipes import ALL, STEPS, Recipe, load_recipe, names
from .flags import Parser, add_command
from .printing import print_json, print_notes, print_table

SHOWN = 6  # images in the grids, as the tutorials show
# what a flag on the command line is for every command that has it; any other is for the first that has it
EVERYWHERE = ("data", "limit", "val-fraction", "backbone", "weights", "layer", "resize", "fast-decode", "seed",
              "device", "workers", "cache-dir", "runs-dir", "max-bytes", "max-pixels")  # fmt: skip
TRAINING_FIRST = ("finetune", "train-head", "extract", "show", "summary")
OF_FEATURES = ("data", "limit", "backbone", "weights", "layer", "resize", "precision", "fast-decode",
               "views", "augmentation", "view-seed")  # fmt: skip
JSON_STEPS = ("finetune", "extract", "train-head")
Settings = dict[str, list[str]]  # words by flag, without dashes
Execute = Callable[[Sequence[str]], str]  # runs a command, returns what it printed


class StepFailedError(PipelineError):
    """A step failed; it has said why."""


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
        parser.epilog = ("Flags for data, network and folders go to every command of the recipe that has them, another "
                         "to the first of finetune, train-head, extract; --STEP.FLAG (--extract.precision) to one. "
                         "--backbone leaves out the recipe's weights and layer, which are its own backbone's.")
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
    commands = [shlex.join(["pipeline", *words]) for words in _plan(recipe, overrides).values()]
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
        result = carry_out(recipe, overrides, _in_own_process, sys.stderr if options.json else sys.stdout)
    except StepFailedError as error:
        if "weights" in recipe.settings.get(ALL, {}) and not overrides.keys() & {"backbone", "weights"}:
            words = ["pipeline", "recipe", "run", recipe.name, *shlex.split(_as_text(overrides))]
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
    plan = _plan(recipe, overrides)
    found: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for step, words in plan.items():
        print("$", shlex.join(["pipeline", *words]), file=sys.stderr)
        begin = time.perf_counter()
        said = execute([*words, "--json"] if step in JSON_STEPS else words)
        seconds[step] = time.perf_counter() - begin
        if step in JSON_STEPS:
            found[step] = json.loads(said)
        else:
            print(said, end="", file=out, flush=True)
    runs = {step: found[step]["runs"][0] for step in ("finetune", "train-head") if step in found}
    results: list[dict[str, Any]] = [{"way": "published", **{key: recipe.facts[key] for key in (
        "accuracy", "split", "time") if key in recipe.facts}}]  # fmt: skip
    if "finetune" in runs:
        results.append(_result("as the original", recipe, runs["finetune"], seconds["finetune"]))
    if "train-head" in runs:
        took = seconds.get("extract", 0) + seconds["train-head"]
        results.append(_result("from cached features", recipe, runs["train-head"], took))
    where = Path(_word(plan, "runs-dir", "runs"))
    pictures = [words[words.index("--out") + 1] for step, words in plan.items() if step == "show"]
    pictures += [_draw_predictions(run["name"], recipe, where) for run in list(runs.values())[:1]]
    return {
        "recipe": recipe.name, "title": recipe.facts["title"], "results": results, "pictures": pictures,
        "runs": [run["name"] for run in runs.values()], "changed": _as_text(overrides),
        "seconds": {step: round(taken, 2) for step, taken in seconds.items()},
        "commands": [shlex.join(["pipeline", *words]) for words in plan.values()],
    }  # fmt: skip


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


def _draw_predictions(name: str, recipe: Recipe, runs_dir: Path) -> str:
    """Draw the first held-out images with what the run says they are; return the file."""
    from ..runs import Run
    from ..thumbnails import grid, save, thumbnail

    run = Run.open(name, runs_dir)
    rows = run.predictions(recipe.facts["split"]) or run.predictions()
    chosen = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]  # classes lie one after the other
    root, path = Path(run.config()["dataset"]["root"]), runs_dir / "recipes" / f"{recipe.name}-predictions.png"
    save(grid([(thumbnail(root / row["filename"]), [row["prediction"], f"{float(row['prob']):.4f}, is {row['label']}"])
               for row in chosen], columns=3), path)
    return str(path)


def _asked(options: argparse.Namespace, to_run: bool = True) -> tuple[Recipe, Settings]:
    recipe, flags = load_recipe(options.name), list(options.flags)
    for own in ("--json", "--only"):  # that stand behind the name
        while own in flags:
            place = flags.index(own)
            options.json = options.json or own == "--json"
            if own == "--only":
                options.only = "".join(flags[place + 1 : place + 2])
                del flags[place + 1 : place + 2]
            del flags[place]
    if options.only:
        wanted = options.only.split(",")
        for step in wanted:
            if step not in recipe.steps:
                raise UnknownNameError(f"command of recipe {recipe.name}", step, recipe.steps)
        kept = {step: own for step, own in recipe.settings.items() if step in (ALL, *wanted)}
        recipe = Recipe(recipe.name, recipe.facts, kept)
    overrides = _overrides(recipe, flags)
    if "wanted" in recipe.facts and "data" not in overrides:
        if not to_run:
            return recipe, {**overrides, "data": ["DATA"]}
        raise PipelineError(f"Recipe {recipe.name} needs --data: {recipe.facts['wanted']}. It cannot be downloaded.")
    return recipe, overrides


def _overrides(recipe: Recipe, flags: list[str]) -> Settings:
    """Read flags with the words that follow each; every flag must be one of the recipe's commands'."""
    found: Settings = {}
    short = {"-b": "batch-size", "-j": "workers"}
    known = {flag for step in recipe.steps for flag in _flags_of(step)}
    for word in flags:
        if word in short or word.startswith("--"):
            name, equals, value = (short.get(word) or word[2:]).partition("=")
            step, dot, flag = name.rpartition(".")
            if (dot and flag not in _flags_of(step)) or (not dot and flag not in known):
                of = f"of {step}" if dot else f"of recipe {recipe.name}"
                raise UnknownNameError(f"flag {of}", f"--{flag}", [f"--{one}" for one in sorted(known)])
            found.setdefault(name, [])
            found[name] += [value] if equals else []
        elif found:
            found[list(found)[-1]].append(word)
        else:
            raise PipelineError(f"Expected a flag, not {word!r}.")
    return found


def _plan(recipe: Recipe, overrides: Settings) -> dict[str, list[str]]:
    """Return each step's words, checked by the very parser that will read them.

    Raises
    ------
    UnknownNameError, PipelineError
        If a setting is no flag of its command, or has an impossible value.
    """
    shared = {key: _words_of(value) for key, value in recipe.settings.get(ALL, {}).items()}
    for key in shared:
        if not any(key in _flags_of(step) for step in STEPS):
            raise UnknownNameError(f"setting in [{ALL}] of recipe {recipe.name}", key, EVERYWHERE)
    settings = {step: _settings_of(recipe, step, shared, overrides) for step in recipe.steps}
    if {"extract", "train-head"} <= settings.keys():  # stage two finds what stage one made by the same flags
        for key in OF_FEATURES:
            if key in settings["extract"]:
                settings["train-head"][key] = settings["extract"][key]
    return {step: _checked_words(recipe, step, own) for step, own in settings.items()}


def _settings_of(recipe: Recipe, step: str, shared: Settings, overrides: Settings) -> Settings:
    """Return a step's flags and the words behind each: the recipe's, where the command line has no others."""
    known, own = _flags_of(step), {key: _words_of(value) for key, value in recipe.settings[step].items()}
    for key in own:
        if key not in known:
            raise UnknownNameError(f"setting in [{step}] of recipe {recipe.name}", key, known)
    settings = {**{key: value for key, value in shared.items() if key in known}, **own}
    if "backbone" in overrides:
        settings = {key: value for key, value in settings.items()
                    if key != "layer" and (key != "weights" or value == ["random"])}
    settings |= _meant_for(step, recipe, overrides)
    if step == "show":
        where = "".join(settings.pop("runs-dir", overrides.get("runs-dir", ["runs"])))
        settings = {"count": [str(SHOWN)], "out": [str(Path(where) / "recipes" / f"{recipe.name}-images.png")],
                    **settings}
    if step in ("finetune", "train-head"):
        base = "".join(overrides.get("name", [f"recipe-{recipe.name}"]))
        settings["name"] = [base if step == "finetune" else f"{base}-cached"]
    return settings


def _checked_words(recipe: Recipe, step: str, settings: Settings) -> list[str]:
    words = [step, *(word for key, value in settings.items() for word in (f"--{key}", *value))]
    try:
        _parser(step).parse_args(words[1:])
    except PipelineError as error:
        raise PipelineError(f"Recipe {recipe.name}, [{step}]: {error}") from error
    return words


def _meant_for(step: str, recipe: Recipe, overrides: Settings) -> Settings:
    """Return the flags of the command line that are for this step."""
    found = {}
    for name, words in overrides.items():
        of, dot, key = name.rpartition(".")
        first = next((one for one in TRAINING_FIRST if one in recipe.settings and key in _flags_of(one)), None)
        if (of == step) if dot else (key in _flags_of(step) and (key in EVERYWHERE or step == first)):
            found[key] = words
    return found


def _words_of(value: Any) -> list[str]:
    """Return the words behind a flag; none behind a switch."""
    if isinstance(value, bool):
        if not value:
            raise PipelineError("A recipe says true or nothing; to switch something off write its flag no-NAME = true.")
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _parser(step: str) -> Parser:
    from .parser import build_parser

    subparsers = next(action for action in build_parser()._actions if isinstance(action.choices, dict))
    return subparsers.choices[step]  # type: ignore[index]


def _flags_of(step: str) -> list[str]:
    """Return a command's flags, without dashes; those that a recipe has no say in are left out."""
    if step not in STEPS:
        raise UnknownNameError("command of a recipe", step, STEPS)
    flags = _parser(step)._option_string_actions
    return [flag[2:] for flag in flags if flag.startswith("--") and flag not in ("--help", "--json", "--features")]


def _word(plan: dict[str, list[str]], flag: str, default: str) -> str:
    found = [words[words.index(f"--{flag}") + 1] for words in plan.values() if f"--{flag}" in words]
    return found[0] if found else default


def _as_text(overrides: Settings) -> str:
    return shlex.join(word for name, words in overrides.items() for word in (f"--{name}", *words))


def in_this_process(words: Sequence[str]) -> str:
    """Run a command and return what it printed."""
    from . import DONE, main

    with redirect_stdout(io.StringIO()) as said:
        if (code := main(words)) != DONE:
            raise _failed(words, code)
    return said.getvalue()


def _in_own_process(words: Sequence[str]) -> str:
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
