"""Every network of timm as ``timm:NAME``, with timm's own data configuration."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from ..core.errors import PipelineError, UnknownNameError, WeightsError, one_line
from ..data.transforms import Transform
from .state_dicts import State, rename
from .weights import Architecture, Weights

if TYPE_CHECKING:
    from torch import nn

PREFIX = "timm:"


def find(name: str) -> Architecture | None:
    """Return timm's architecture ``timm:NAME``, if the name has that prefix.

    Raises
    ------
    PipelineError
        If timm is not installed.
    UnknownNameError
        If timm has no such network.
    """
    if not name.startswith(PREFIX):
        return None
    if importlib.util.find_spec("timm") is None:
        raise PipelineError(f"{name!r} needs the package timm, which is not installed: pip install timm")
    import timm

    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        raise UnknownNameError("timm network", model, timm.list_models())
    configuration = timm.get_pretrained_cfg(model)
    return Architecture(
        name,
        lambda: skeleton(model),
        lambda tag: transform(configuration),
        lambda tag: published(model),
        ("timm",),
        lambda state: without_classifier(configuration, state),
    )


def skeleton(model: str) -> nn.Module:
    """Build a network that returns its pooled features."""
    import timm

    return timm.create_model(model, pretrained=False, num_classes=0)


def transform(configuration: Any) -> Transform:
    """Return the transform of timm's data configuration for validation."""
    from timm.data import resolve_data_config

    return Transform.from_timm(resolve_data_config({}, pretrained_cfg=configuration.to_dict()))


def published(model: str) -> Weights:
    """Return timm's weights, downloaded to its hub's own cache when they are not there yet.

    Raises
    ------
    WeightsError
        If there are none, or they cannot be downloaded.
    """
    import timm

    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # the hub client has many exceptions of its own
        raise WeightsError(
            f"Cannot get the weights of timm:{model}: {one_line(error)}. Pass --weights FILE, or choose a "
            "backbone that needs no download (`pipeline backbones`)."
        ) from error
    return Weights.from_state("timm", network.state_dict())


def without_classifier(configuration: Any, state: State) -> State:
    """Leave out the classifier's tensors."""
    names = (configuration.classifier if configuration else None) or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return rename(state, lambda key: None if prefixes and key.startswith(prefixes) else key)
