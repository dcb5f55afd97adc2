"""Below which block a strategy's training can start from cached activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..backbones import POOLED, Backbone
from ..backbones.blocks import Block, find_blocks
from ..backbones.cuts import Flow
from ..backbones.layers import FeatureNetwork, columns
from ..backbones.torchvision_models import laid_out
from ..core.errors import PipelineError
from ..data.augmentation import Views
from .settings import AUTO, STRATEGIES, FinetuneSettings

HALF = 0.5  # of the network's multiply-adds: what `--unfreeze auto` leaves to be trained, at most


def below_training(backbone: Backbone, settings: FinetuneSettings) -> tuple[Backbone, tuple[int, ...]]:
    """Return what gives the activations just below the first block that is trained, and their shape for one image.

    Of a strategy that trains no block these are the pooled features. Found without weights or arithmetic.

    Raises
    ------
    PipelineError
        If the first block is trained, or the network cannot be cut just there; where it can be is told.
    """
    if backbone.layer != POOLED:
        raise PipelineError(f"--cached trains all that is above the cut, up to the pooled features: leave --layer "
                            f"{backbone.layer} out.")
    views = Views(settings.views, settings.augmentation) if settings.views > 1 else backbone.views
    network = laid_out(backbone.architecture)
    blocks = find_blocks(FeatureNetwork(network))
    names = [block.name for block in blocks]
    rates = STRATEGIES[settings.strategy].rates(names, settings, settings.epochs - 1)
    if not any(rates):
        return replace(backbone, views=views), _pooled_shape(network, backbone)
    first = next(place for place, rate in enumerate(rates) if rate)
    if first == 0:
        raise PipelineError(f"--cached needs blocks that stay frozen, and {settings.strategy!r} trains all of "
                            f"{backbone.name}: add --unfreeze auto, half, last-N or a layer's name.")
    flow = Flow(network, backbone.transform.crop)
    layer = _cut_below(flow, blocks, first, settings.unfreeze)
    kept = replace(backbone, layer=layer, storage=settings.storage, views=views)
    return kept, tuple(columns(kept)["shape"])


@dataclass(frozen=True)
class Place:
    """A place where a network can be cut below a block.

    Attributes
    ----------
    unfreeze : str
        The block, as ``--unfreeze`` takes it; empty for the pooled features, above which is the head alone.
    layer : str
        Just below it.
    shape : tuple of int
        Of that layer's output for one image.
    share : float
        Of the network's multiply-adds that lie above.
    """

    unfreeze: str
    layer: str
    shape: tuple[int, ...]
    share: float


def cut_places(backbone: Backbone) -> list[Place]:
    """Return every place where a network can be cut below a block, from the input up; the pooled features last.

    Raises
    ------
    PipelineError
        If it cannot be cut at all.
    """
    network = laid_out(backbone.architecture)
    flow, blocks = Flow(network, backbone.transform.crop), find_blocks(FeatureNetwork(network))
    measured = {cut.layer: cut for cut in flow.measured()}
    found: list[Place] = []
    for number in range(1, len(blocks)):
        layer = directly_below(flow, blocks, number)
        if layer in measured:
            found.append(Place(blocks[number].name, layer, measured[layer].shape, 1 - measured[layer].work / flow.work))
    return [*found, Place("", POOLED, _pooled_shape(network, backbone), 0.0)]


def _pooled_shape(network: torch.nn.Module, backbone: Backbone) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(network(torch.empty(1, 3, *backbone.transform.crop, device="meta")).flatten(1).shape[1:])


def lowest_of_half(places: Sequence[Place]) -> str:
    """Return the block above the lowest place that has at most half of the network's work above it."""
    return next((place.unfreeze for place in places if place.share <= HALF), "")


def with_unfreeze(settings: FinetuneSettings, backbone: Backbone) -> FinetuneSettings:
    """Return settings whose `unfreeze` is a block where it was ``auto``: see `lowest_of_half`.

    Raises
    ------
    PipelineError
        If there is no such block.
    """
    if settings.unfreeze != AUTO:
        return settings
    if found := lowest_of_half(cut_places(backbone)):
        return replace(settings, unfreeze=found)
    raise PipelineError(f"{backbone.name} has no block with at most half of the work in it and above: give --unfreeze "
                        "last-N or a layer's name.")


def _cut_below(flow: Flow, blocks: Sequence[Block], first: int, asked: str) -> str:
    found = directly_below(flow, blocks, first)
    inside = asked.startswith(f"{blocks[first].name}.")
    if found and not inside:
        return found
    possible = [place for place in range(1, len(blocks)) if directly_below(flow, blocks, place)]
    nearest = sorted(possible, key=lambda place: abs(place - first - 0.1))[:2]
    places = " or ".join(f"--unfreeze {blocks[place].name}" for place in sorted(nearest))
    why = (f"{asked!r} is inside the block {blocks[first].name!r}, whose input goes round it" if inside else
           f"more than one value passes from below {blocks[first].name!r} to what is above")
    raise PipelineError(f"No cut there: {why}. The nearest: {places or 'none'}.")


def directly_below(flow: Flow, blocks: Sequence[Block], first: int) -> str | None:
    """Return the cut below a block, if nothing else that could be frozen lies between."""
    trained = {name for block in blocks[first:] for name in block.parameters}
    layer = flow.below(trained)
    return None if layer is None or flow.between(layer, trained) else layer
