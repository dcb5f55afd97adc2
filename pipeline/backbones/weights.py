"""What a source of backbones gives: skeleton, transform, weights, and what identifies these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import WeightsError
from ..data.transforms import Transform
from .state_dicts import State, read_state, split_part, state_digest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Weights:
    """A network's weights, not loaded yet.

    Attributes
    ----------
    label : str
        How they were asked for: a tag such as ``IMAGENET1K_V1``, a file, or ``random``.
    digest : str
        SHA-256 of the file, or of the tensors where they come from no single file. Part of the spec.
    load : callable
        Returns the state dict.
    """

    label: str
    digest: str
    load: Callable[[], State]

    @classmethod
    def from_file(cls, file: str | Path, label: str | None = None) -> Weights:
        """Return the weights in a safetensors file, or in one that `torch.save` wrote.

        Parameters
        ----------
        file : path-like
            ``FILE[part]`` names one of several state dicts in it, see `pipeline.backbones.state_dicts`.
        label : str, optional

        Raises
        ------
        WeightsError
            If there is no such file. What is in it is read by `load`.
        """
        path, part = split_part(file)
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"Cannot read the weights {str(path)!r}: {error.strerror or error}.") from error
        if part:
            digest = hashlib.sha256(f"{digest}[{part}]".encode()).hexdigest()
        return cls(label or str(file), digest, lambda: read_state(path, part))

    @classmethod
    def from_state(cls, label: str, state: State) -> Weights:
        """Return weights that are in memory already, identified by their tensors' names, types, shapes and bytes."""
        return cls(label, state_digest(state), lambda: state)


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
    offline : bool
        Whether they are on this machine.
    """

    name: str
    features: int
    parameters: int
    pixels: int
    top1: float | None
    weights: str
    offline: bool = False
