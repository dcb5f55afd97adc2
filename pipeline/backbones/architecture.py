"""What every source of backbones provides: a network's skeleton, its transform, its published weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.transforms import Transform
from .weights import State, Weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """A network without weights.

    Attributes
    ----------
    name : str
        As on the command line.
    skeleton : callable
        Builds the network with initial weights; it returns pooled features, having no classifier.
    transform : callable
        From a weights tag (or None for the default) to the transform those weights were trained with.
    pretrained : callable
        From a weights tag (or None for the default) to the published weights, downloaded if need be.
    tags : tuple of str
        The published weights' names, the default first.
    convert : callable
        From the published state dict to one that fits the skeleton.
    """

    name: str
    skeleton: Callable[[], nn.Module]
    transform: Callable[[str | None], Transform]
    pretrained: Callable[[str | None], Weights]
    tags: tuple[str, ...] = ()
    convert: Callable[[State], State] = lambda state: state


@dataclass(frozen=True)
class Listing:
    """A line of `pipeline backbones`.

    Attributes
    ----------
    name : str
    features : int
        D, the length of a pooled feature vector.
    parameters : int
        Of the whole published network.
    pixels : int
        Height and width of its input.
    top1 : float or None
        Published ImageNet-1K top-1 accuracy of the default weights, in percent.
    weights : str
        Where they come from.
    """

    name: str
    features: int
    parameters: int
    pixels: int
    top1: float | None
    weights: str
