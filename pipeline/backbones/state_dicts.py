"""Weights as people keep them: read without running anything, the network's own part found among what is beside it."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.contents import START, stand_in
from ..core.errors import UnknownNameError, WeightsError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]

PARTS = ("state_dict", "model_state_dict", "model", "teacher", "ema", "model_ema", "state_dict_ema", "student",
         "network", "net", "weights", "params")  # fmt: skip
"""Where a checkpoint keeps a network's weights, beside its optimiser and whatever else; the first there is is taken."""

_LOG = logging.getLogger(__name__)  # the command line prints what is logged in this room
_PART = re.compile(r"(?P<file>.+)\[(?P<part>[\w./-]+)\]")
_COUNTERS = "num_batches_tracked"  # of BatchNorm; PyTorch before 0.4.1 kept none, and no frozen network reads them
_DEEPEST = 3  # components of a prefix
WHOLE_MODULE = ("Where it came from, `torch.save(model.state_dict(), 'weights.pth')` saves weights alone; "
                "`safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')` is best.")


class MisfitError(WeightsError):
    """Weights fit no part of a network; `prefix` is that under which the most do."""

    def __init__(self, message: str, prefix: str):
        super().__init__(message)
        self.prefix = prefix


def split_part(weights: str | Path) -> tuple[Path, str]:
    """Split ``FILE[part]`` into the file and the part of it that is meant; empty for whatever is taken by itself.

    >>> split_part("dino.pth[student]")[1]
    'student'
    """
    found = _PART.fullmatch(str(weights))
    return (Path(found["file"]), found["part"]) if found and not Path(weights).exists() else (Path(weights), "")


def read_state(path: Path, part: str = "") -> State:
    """Read a state dict from a file, running nothing that the file contains.

    Parameters
    ----------
    path : Path
        ``*.safetensors``, or a file written by `torch.save` that holds tensors and plain containers only.
    part : str
        Which of the file's state dicts; by default the first of `PARTS`, and a note tells of the others.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything but these, or no state dict.
    UnknownNameError
        If it has no such part.
    """
    content = _content(path)
    found = _state_dicts(content)
    if part and part not in found:
        raise UnknownNameError(f"part of {path}", part, [name for name in found if name])
    if not found:
        raise WeightsError(f"{str(path)!r} holds no state dict: expected a mapping from names to tensors.")
    known = [name for name in (*PARTS, "") if name in found]
    chosen = part or (known or list(found))[0]
    if not part and (others := [name for name in found if name != chosen]):
        _LOG.info(f"{path} holds several networks: {chosen!r} is taken; --weights '{path}[{others[0]}]' would take "
                  f"another ({', '.join(others)}).")
    return found[chosen]


def _content(path: Path) -> Any:
    import torch

    with path.open("rb") as file:
        start = file.read(START)
    if what := stand_in(start) if start else "empty":
        raise WeightsError(f"Cannot read weights from {str(path)!r}: it is {what}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_plain()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
        what = f"it holds {asked[1]}, an object that would run code" if asked else (
            "it is damaged, or holds objects that would run code")
        raise WeightsError(f"Refused to load {str(path)!r}: {what}. {WHOLE_MODULE}") from error
    except Exception as error:  # a damaged file raises almost anything, safetensors an exception of its own
        raise WeightsError(f"Cannot read weights from {str(path)!r}: {one_line(error)}.") from error


@cache
def _plain() -> list[Any]:
    """Return the types that may lie beside tensors: they hold values, and making one calls nothing of the file's."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # which other versions of numpy keep elsewhere, and files name by its place
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [argparse.Namespace, OrderedDict, np.dtype, *kinds, scalar, (scalar, "numpy._core.multiarray.scalar"),
            (scalar, "numpy.core.multiarray.scalar")]


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> dict[str, State]:
    """Return the state dicts in a checkpoint by the names of what holds them; that of a bare one is empty."""
    import torch

    if not isinstance(content, Mapping) or not content:
        return {}
    if all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        return {name: content}
    found: dict[str, State] = {}
    for key, value in content.items():
        if isinstance(key, str) and depth < _DEEPEST and (key in PARTS or not depth):
            inner = _state_dicts(value, key if not name else f"{name}/{key}", depth + 1)
            # an optimiser keeps tensors too, by numbers, and one tensor is no network
            found |= {part: state for part, state in inner.items() if len(state) > 1}
    return found


def rename(state: State, new_name: Callable[[str], str | None]) -> State:
    """Rename tensors, dropping those whose new name is None; the module versions that torch keeps stay."""
    renamed = OrderedDict((name, value) for key, value in state.items() if (name := new_name(key)) is not None)
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return renamed


@dataclass(frozen=True)
class _Fit:
    """How well a part of a state dict fits a network."""

    prefix: str
    state: State
    missing: list[str]
    left_over: list[str]
    reshaped: list[str]
    matching: int

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.left_over or self.reshaped)


def load_into(network: nn.Module, state: State, what: str, convert: Callable[[State], State] = lambda state: state
              ) -> None:
    """Load `state` into `network`, which must fit it exactly, but for BatchNorm's counters of batches.

    Where it does not, a prefix is looked for (``module.``, ``model.``, ``encoder_q.``, ``backbone.``, nested ones)
    whose tensors fit, as those of wrapped networks do; what else lies beside them is left out, and a note says so.

    Parameters
    ----------
    network : nn.Module
    state : mapping of str to tensor
    what : str
        Begins the message: what does not fit what.
    convert : callable
        From tensors as published to those of `network`; may drop a classifier.

    Raises
    ------
    MisfitError
        If tensors are missing, left over or of another shape; the first few are named.
    """
    expected = network.state_dict()
    tried = []
    for prefix in _prefixes(state):
        tried.append(fit := _fit(state, prefix, convert, expected))
        if fit.is_exact:
            break
    else:
        best = max(tried, key=lambda fit: fit.matching)
        raise MisfitError(_misfit(best, what, len(expected)), best.prefix)
    if fit.prefix:
        inside = sum(key.startswith(fit.prefix) for key in state)
        rest = f"; the other {len(state) - inside} tensors are left out" if inside < len(state) else ""
        _LOG.info(f"{what.split(' does not')[0]}: weights under {fit.prefix!r} are taken{rest}.")
    fitting = fit.state
    if not hasattr(fitting, "_metadata"):
        # some torchvision networks read the version of their layout from here; safetensors keeps none
        fitting = OrderedDict(fitting)
        fitting._metadata = expected._metadata  # type: ignore[attr-defined]
    try:
        network.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{what}: another architecture's weights ({one_line(error)}).") from error


def _prefixes(state: State) -> list[str]:
    """Return what names in a state dict begin with, the most frequent first; none at all before these."""
    counts: dict[str, int] = {}
    for key in state:
        parts = key.split(".")
        for depth in range(1, min(_DEEPEST, len(parts) - 1) + 1):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return ["", *sorted((prefix for prefix, count in counts.items() if count > 1), key=lambda one: (-counts[one], one))]


def _fit(state: State, prefix: str, convert: Callable[[State], State], expected: State) -> _Fit:
    part = rename(state, lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)
    with suppress(KeyError, ValueError):  # names that the published ones never have
        part = convert(part)
    shared = [key for key in part if key in expected]
    reshaped = [f"size mismatch for {key}: {tuple(part[key].shape)} in the file, {tuple(expected[key].shape)} in the "
                "network" for key in shared if part[key].shape != expected[key].shape]
    missing = [key for key in expected if key not in part and not key.endswith(_COUNTERS)]
    return _Fit(prefix, part, missing, [key for key in part if key not in expected], reshaped,
                len(shared) - len(reshaped))


def _misfit(fit: _Fit, what: str, expected: int) -> str:
    parts = [f"missing {first(fit.missing)}"] if fit.missing else []
    parts += [f"unexpected {first(fit.left_over)}"] if fit.left_over else []
    parts = [first(fit.reshaped, 1)] if fit.reshaped else parts
    under = f" under {fit.prefix!r}" if fit.prefix else ""
    return (f"{what}: another architecture's weights ({'; '.join(parts)}). {fit.matching} of the network's {expected} "
            f"tensors are in the file{under}.")


def state_digest(state: State) -> str:
    """Return the SHA-256 of a state dict's names, types, shapes and bytes, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first(names: list[str], most: int = 3) -> str:
    """Return the first few of `names`, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
