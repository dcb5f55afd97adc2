"""What a source of backbones gives: skeleton, transform, weights; what identifies weights, and loading them safely."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import WeightsError, one_line
from ..data.transforms import Transform

if TYPE_CHECKING:
    import torch
    from torch import nn

State = Mapping[str, "torch.Tensor"]


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
    def from_file(cls, path: Path, label: str | None = None) -> Weights:
        """Return the weights in a safetensors file, or in one that `torch.save` wrote.

        Raises
        ------
        WeightsError
            If there is no such file. What is in it is read by `load`.
        """
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"Cannot read the weights {str(path)!r}: {error.strerror or error}.") from error
        return cls(label or str(path), digest, lambda: read_state(path))

    @classmethod
    def from_state(cls, label: str, state: State) -> Weights:
        """Return weights that are in memory already, identified by their tensors' names, types, shapes and bytes."""
        return cls(label, state_digest(state), lambda: state)


def read_state(path: Path) -> State:
    """Read a state dict from a file, running nothing that the file contains.

    Parameters
    ----------
    path : Path
        ``*.safetensors``, or a file written by `torch.save` that holds tensors only.

    Raises
    ------
    WeightsError
        If the file is damaged, holds anything but tensors, or is no weights file.
    """
    import torch

    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"Refused to load {str(path)!r}: it is damaged, or holds objects that would run code. "
            "Save its state_dict() alone, best as .safetensors."
        ) from error
    except Exception as error:  # a damaged file raises almost anything, safetensors an exception of its own
        raise WeightsError(f"Cannot read weights from {str(path)!r}: {one_line(error)}.") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()) or not state:
        raise WeightsError(f"{str(path)!r} holds no state dict: expected a mapping from names to tensors.")
    return rename(state, lambda key: key.removeprefix("module."))


def rename(state: State, new_name: Callable[[str], str | None]) -> State:
    """Rename tensors, dropping those whose new name is None; the module versions that torch keeps stay."""
    renamed = OrderedDict((name, value) for key, value in state.items() if (name := new_name(key)) is not None)
    if hasattr(state, "_metadata"):
        renamed._metadata = state._metadata  # type: ignore[attr-defined]
    return renamed


def load_into(network: torch.nn.Module, state: State, what: str) -> None:
    """Load `state` into `network`, which must fit it exactly, but for BatchNorm's counters of batches.

    PyTorch before 0.4.1 did not save those, and no forward pass of a frozen network reads them.

    Raises
    ------
    WeightsError
        If tensors are missing, left over or of another shape; the first few are named.
    """
    if not hasattr(state, "_metadata"):
        # some torchvision networks read the version of their layout from here; safetensors keeps none
        state = OrderedDict(state)
        state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        missing, left_over = network.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise WeightsError(f"{what}: another architecture's weights ({first(lines) or one_line(error)}).") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left_over:
        parts = [f"missing {first(missing)}"] if missing else []
        parts += [f"unexpected {first(left_over)}"] if left_over else []
        raise WeightsError(f"{what}: another architecture's weights ({'; '.join(parts)}).")


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
