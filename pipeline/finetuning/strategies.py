"""How much of a network is trained, and how fast each part of it. Imports no torch.

A strategy sees the network as a row of blocks from input to output, and gives each a factor of the
learning rate; 0 is frozen. The head on top is always trained, at the full rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..core.errors import PipelineError, UnknownNameError
from ..core.registry import Registry

if TYPE_CHECKING:
    from .settings import FinetuneSettings

Factors = Callable[[Sequence[str], "FinetuneSettings", int], list[float]]


@dataclass(frozen=True)
class Strategy:
    """One way to fine-tune.

    Attributes
    ----------
    summary : str
        A line for the command line.
    factors : callable
        From the blocks' names, the settings and the epoch (from 0) to one factor of the learning rate a block.
    random : bool
        Start the backbone from random weights.
    probe : bool
        Start the head from the solution of logistic regression on the frozen features, rather than from zero.
    interpolate : bool
        At the end, mix the weights from before and after training, in the proportion that is best on val.
    """

    summary: str
    factors: Factors
    random: bool = False
    probe: bool = False
    interpolate: bool = False


STRATEGIES: Registry[Strategy] = Registry("strategy")


def _whole(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    return [1.0] * len(blocks)


def _head_only(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    return [0.0] * len(blocks)


def _discriminative(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    count = len(blocks)
    return [settings.backbone_rate * settings.layer_decay ** (count - 1 - place) for place in range(count)]


def _partial(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    first = first_trained(blocks, settings.unfreeze)
    return [float(place >= first) for place in range(len(blocks))]


def _gradual(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    # one block more an epoch, or as many as it takes to have them all in the last
    step = ceil(len(blocks) / max(1, settings.epochs - 1))
    return [float(place >= len(blocks) - epoch * step) for place in range(len(blocks))]


def first_trained(blocks: Sequence[str], unfreeze: str) -> int:
    """Return the place of the first block that `partial` trains.

    Parameters
    ----------
    blocks : sequence of str
        Names from input to output.
    unfreeze : str
        ``half``, ``last-N``, or the name of a block, of a layer inside one, or of a group of blocks.

    Raises
    ------
    UnknownNameError, PipelineError
        If there is no such layer, or there are not so many blocks.
    """
    if unfreeze == "half":
        return len(blocks) // 2
    if match := re.fullmatch(r"last-(\d+)", unfreeze):
        count = int(match.group(1))
        if not 1 <= count <= len(blocks):
            raise PipelineError(f"--unfreeze {unfreeze}: the network has {len(blocks)} blocks ({', '.join(blocks)}).")
        return len(blocks) - count
    for place, name in enumerate(blocks):
        if f"{name}.".startswith(f"{unfreeze}.") or f"{unfreeze}.".startswith(f"{name}."):
            return place
    raise UnknownNameError("layer to unfreeze from", unfreeze, ["half", "last-1", *blocks])


STRATEGIES["whole"] = Strategy("all weights at one learning rate", _whole)
STRATEGIES["discriminative"] = Strategy("all weights, the backbone's at a smaller rate", _discriminative)
STRATEGIES["partial"] = Strategy("the last blocks (--unfreeze), those below frozen", _partial)
STRATEGIES["gradual"] = Strategy("one more block unfrozen each epoch, from the top", _gradual)
STRATEGIES["head-only"] = Strategy("the backbone frozen, but run for every image in every epoch", _head_only)
STRATEGIES["scratch"] = Strategy("all weights, from random ones: what pretraining is worth", _whole, random=True)
STRATEGIES["lp-ft"] = Strategy("all weights, the head starting from the solved linear probe", _whole, probe=True)
STRATEGIES["interpolate"] = Strategy(
    "as lp-ft, then the mix of the weights before and after that is best on val", _whole, probe=True, interpolate=True
)
