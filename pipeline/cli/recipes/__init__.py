"""Published systems as files: `NAME.toml` holds one's settings to the letter, and its published figure.

A recipe is a row of commands. Each section below `STEPS` is one, its keys are that command's flags; what stands in
``[all]`` goes to every command that has the flag.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import PipelineError, UnknownNameError

FOLDER = Path(__file__).parent
# in this order; any of them may be absent. What stands behind CACHED trains from cached activations
CACHED = "finetune-cached"
STEPS = ("show", "summary", "finetune", CACHED, "extract", "train-head", "predict")
ALL = "all"
FACTS = ("title", "source", "accuracy", "split", "time", "remarks", "wanted")


@dataclass(frozen=True)
class Recipe:
    """One published system.

    Attributes
    ----------
    name : str
        The file's, without ``.toml``.
    facts : dict
        `title` and `source`; `accuracy`, `time` as published, where they were; the `split` that figures are of;
        `remarks`; and `wanted`: the images to give as ``--data``, where they cannot be had by a name.
    settings : dict
        Of each section, its flags without dashes.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, dict[str, Any]]

    @property
    def steps(self) -> list[str]:
        """The commands that it runs, in their order."""
        return [step for step in STEPS if step in self.settings]


def command_of(step: str) -> str:
    """Return the command that a step types."""
    return "finetune" if step == CACHED else step


def names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe that comes with the package, or a file of one's own.

    Parameters
    ----------
    name : str
        Capitals do not matter; or a path ending in ``.toml``.

    Raises
    ------
    UnknownNameError
        If there is none, or it has sections or facts that mean nothing.
    PipelineError
        If it cannot be read.
    """
    by_name = {known.lower(): FOLDER / f"{known}.toml" for known in names()}
    path = Path(name) if name.endswith(".toml") else by_name.get(name.lower())
    if path is None:
        raise UnknownNameError("recipe", name, names())
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"Cannot read the recipe {str(path)!r}: {error.strerror or error}.") from error
    except ValueError as error:
        raise PipelineError(f"The recipe {str(path)!r} is no TOML: {error}.") from error
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    facts = {key: value for key, value in content.items() if key not in sections}
    for kind, given, known in (("section", sections, (ALL, *STEPS)), ("entry", facts, FACTS)):
        for key in given:
            if key not in known:
                raise UnknownNameError(f"{kind} of recipe {path.stem}", key, known)
    for key in ("title", "split"):
        if not isinstance(facts.get(key), str):
            raise PipelineError(f"The recipe {str(path)!r} needs a {key}, a text.")
    if not isinstance(accuracy := facts.get("accuracy", 0.0), (int, float)) or not 0 <= accuracy <= 1:
        raise PipelineError(f"The recipe {str(path)!r} has accuracy {accuracy!r}: expected a share between 0 and 1.")
    return Recipe(path.stem, facts, sections)
