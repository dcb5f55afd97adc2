"""A network that a program has in its hands as a backbone, with the cache's guarantees."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

from ..core.errors import PipelineError
from ..data.transforms import Transform
from .state_dicts import state_digest
from .weights import Architecture, Weights

if TYPE_CHECKING:
    from torch import nn

PREFIX, TAG = "own:", "own"
_known: dict[str, Architecture] = {}


def register(module: nn.Module, transform: Any, name: str) -> str:
    """Make a network known in this process, and return the name that it has from now on.

    Parameters
    ----------
    module : nn.Module
        Maps normalised images (N, 3, H, W) to features (N, D). It is copied as it is now.
    transform : Transform, torchvision's preset of some weights, or timm's data config
        What its images go through.
    name : str
        Without the prefix ``own:``.

    Raises
    ------
    PipelineError
        If the module has no weights, or the transform is none of these.
    """
    state = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
    if not state:
        raise PipelineError(f"{type(module).__name__} has no weights to be known by.")
    made, given = copy.deepcopy(module).cpu().eval(), _transform(transform)
    code = f"{type(module).__module__}.{type(module).__qualname__}"
    digest = hashlib.sha256(f"{code}\n{state_digest(state)}".encode()).hexdigest()
    weights = Weights(TAG, digest, lambda: state)
    architecture = Architecture(f"{PREFIX}{name}", lambda: copy.deepcopy(made), lambda tag: given, lambda tag: weights,
                                (TAG,))
    _known[architecture.name] = architecture
    return architecture.name


def _transform(given: Any) -> Transform:
    if isinstance(given, Transform):
        return given
    if isinstance(given, dict):
        return Transform.from_timm(given)
    if hasattr(given, "resize_size"):
        return Transform.from_torchvision(given)
    raise PipelineError(f"A transform cannot be {type(given).__name__}. Known: pipeline.Transform(resize, crop, …), "
                        "the transforms() of torchvision's weights, timm's resolve_data_config(…).")


def find(name: str) -> Architecture | None:
    """Return what was made known under that name.

    Raises
    ------
    PipelineError
        If the name is of this kind, but nothing was.
    """
    if name.startswith(PREFIX) and name not in _known:
        raise PipelineError(f"{name!r} is a network of somebody's program. In this process, "
                            f"pipeline.own_backbone(module, transform, {name.removeprefix(PREFIX)!r}) makes it known.")
    return _known.get(name)
