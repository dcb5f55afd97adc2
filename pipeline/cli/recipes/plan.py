"""What a recipe and the flags beside its name come to: the words of each of its commands."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from ...core.errors import PipelineError, UnknownNameError
from ..flags import Parser
from ..parser import command_parser
from . import ALL, CACHED, STEPS, Recipe, command_of

SHOWN = 6  # images in the grids, as the tutorials show
IMAGE = "IMAGE"  # stands for the one that is predicted, until it is known
# What a flag on the command line is for every command that has it; any other is for the first that has it
EVERYWHERE = ("data", "limit", "val-fraction", "backbone", "weights", "layer", "resize", "fast-decode", "strategy",
              "unfreeze", "seed", "device", "workers", "cache-dir", "runs-dir", "max-bytes", "max-pixels")  # fmt: skip
TRAINING_FIRST = ("finetune", CACHED, "train-head", "extract", "show", "summary", "predict")
OF_FEATURES = ("data", "limit", "backbone", "weights", "layer", "resize", "precision", "fast-decode", "decoder",
               "views", "augmentation", "view-seed")  # fmt: skip
TRAINING = ("finetune", CACHED, "train-head")  # each leaves a run; the first there is predicts
NOT_ITS_OWN = ("--help", "--json", "--features", "--run")  # flags that a recipe has no say in
Settings = dict[str, list[str]]  # words by flag, without dashes


def overrides_of(recipe: Recipe, flags: list[str]) -> Settings:
    """Read flags with the words that follow each.

    Raises
    ------
    UnknownNameError
        If one is no flag of any of the recipe's commands.
    PipelineError
        If a word follows no flag.
    """
    found: Settings = {}
    waiting: list[str] | None = None  # for the word behind a flag
    short = {"-b": "batch-size", "-j": "workers"}
    known = {flag for step in recipe.steps for flag in flags_of(step)}
    for word in flags:
        if word in short or word.startswith("--"):
            name, equals, value = (short.get(word) or word[2:]).partition("=")
            step, dot, flag = name.rpartition(".")
            if (dot and flag not in flags_of(step)) or (not dot and flag not in known):
                of = f"of {step}" if dot else f"of recipe {recipe.name}"
                choices = [f"--{one}" for one in sorted({*known, "json", "only"})]
                raise UnknownNameError(f"flag {of}", f"--{flag}", choices)
            words = found.setdefault(name, [])
            words += [value] if equals else []
            waiting = None if equals else words
        elif waiting is not None:
            waiting.append(word)
            waiting = None
        else:
            raise PipelineError(f"Expected a flag, not {word!r}.")
    return found


def plan(recipe: Recipe, overrides: Settings) -> dict[str, list[str]]:
    """Return the words of each step, checked by the very parser that will read them.

    Raises
    ------
    UnknownNameError, PipelineError
        If a setting is no flag of its command, or has an impossible value.
    """
    shared = {key: _words_of(value) for key, value in recipe.settings.get(ALL, {}).items()}
    for key in shared:
        if not any(key in flags_of(step) for step in STEPS):
            raise UnknownNameError(f"setting in [{ALL}] of recipe {recipe.name}", key, EVERYWHERE)
    settings = {step: _settings_of(recipe, step, shared, overrides) for step in recipe.steps}
    if {"extract", "train-head"} <= settings.keys():  # stage two finds what stage one made by the same flags
        for key in OF_FEATURES:
            if key in settings["extract"]:
                settings["train-head"][key] = settings["extract"][key]
    return {step: _checked_words(recipe, step, own) for step, own in settings.items()}


def as_text(overrides: Settings) -> str:
    """Return flags as they would be typed."""
    return shlex.join(_typed(overrides))


def _typed(settings: Settings) -> list[str]:
    """Return flags and their words; a flag of several words is typed as often."""
    found = []
    for name, words in settings.items():
        for one in words:
            found += [f"--{name}", one]
        found += [] if words else [f"--{name}"]
    return found


@cache
def flags_of(step: str) -> tuple[str, ...]:
    """Return a command's flags, without dashes; those that a recipe has no say in are left out.

    Raises
    ------
    UnknownNameError
        If it is no command of a recipe.
    """
    if step not in STEPS:
        raise UnknownNameError("command of a recipe", step, STEPS)
    flags = _parser(step)._option_string_actions
    return tuple(flag[2:] for flag in flags if flag.startswith("--") and flag not in NOT_ITS_OWN)


def _settings_of(recipe: Recipe, step: str, shared: Settings, overrides: Settings) -> Settings:
    """Return a step's flags and the words behind each: the recipe's, where the command line has no others."""
    known, own = flags_of(step), {key: _words_of(value) for key, value in recipe.settings[step].items()}
    for key in own:
        if key not in known:
            raise UnknownNameError(f"setting in [{step}] of recipe {recipe.name}", key, known)
    settings = {**{key: value for key, value in shared.items() if key in known}, **own}
    if "head" in overrides:  # the grid is of the recipe's own head
        settings.pop("grid", None)
    if "backbone" in overrides:
        settings = {key: value for key, value in settings.items()
                    if key != "layer" and (key != "weights" or value == ["random"])}
    settings |= _meant_for(step, recipe, overrides)
    if step == "show":
        where = "".join(settings.pop("runs-dir", overrides.get("runs-dir", ["runs"])))
        settings = {"count": [str(SHOWN)], "out": [str(Path(where) / "recipes" / f"{recipe.name}-images.png")],
                    **settings}
    if step == CACHED:
        settings["cached"] = []
    if step in TRAINING:
        settings["name"] = [_run_name(recipe, step, overrides)]
    if step == "predict":
        trained = next((one for one in TRAINING if one in recipe.settings), TRAINING[0])
        settings["run"] = [_run_name(recipe, trained, overrides)]
    return settings


def _run_name(recipe: Recipe, step: str, overrides: Settings) -> str:
    base = "".join(overrides.get("name", [f"recipe-{recipe.name}"]))
    return base + {"finetune": "", CACHED: "-activations"}.get(step, "-cached")


def _checked_words(recipe: Recipe, step: str, settings: Settings) -> list[str]:
    head = "".join(settings.get("head", []))
    if head == "all" or "," in head:
        raise PipelineError(f"A recipe trains one head, not {head!r}; `train-head --head {head}` takes several.")
    words = [command_of(step), *([IMAGE] if step == "predict" else [])]
    words += _typed(settings)
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
        first = next((one for one in TRAINING_FIRST if one in recipe.settings and key in flags_of(one)), None)
        if (of == step) if dot else (key in flags_of(step) and (key in EVERYWHERE or step == first)):
            found[key] = words
    return found


def _words_of(value: Any) -> list[str]:
    """Return the words behind a flag; none behind a switch."""
    if isinstance(value, bool):
        if not value:
            raise PipelineError("A recipe says true or nothing; to switch something off write its flag no-NAME = true.")
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


@cache
def _parser(step: str) -> Parser:
    return command_parser()[1].choices[command_of(step)]
