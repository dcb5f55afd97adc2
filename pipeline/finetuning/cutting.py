"""Below which block a strategy's training can start from cached activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..backbones import POOLED, Backbone
from ..backbones.blocks import Block, find_blocks
from ..backbones.cuts import Flow
from ..backbones.layers import FeatureNetwork, columns
from ..backbones.torchvision_models import shapes_only
from ..core.errors import PipelineError
from ..data.augmentation import Views
from .settings import STRATEGIES, FinetuneSettings


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
    with shapes_only():
        network = backbone.architecture.skeleton()
    network.to("meta").eval()
    blocks = find_blocks(FeatureNetwork(network))
    names = [block.name for block in blocks]
    rates = STRATEGIES[settings.strategy].rates(names, settings, settings.epochs - 1)
    if not any(rates):
        with torch.no_grad():
            pooled = network(torch.empty(1, 3, *backbone.transform.crop, device="meta")).flatten(1)
        return replace(backbone, views=views), (pooled.shape[1],)
    first = next(place for place, rate in enumerate(rates) if rate)
    if first == 0:
        raise PipelineError(f"--cached needs blocks that stay frozen, and {settings.strategy!r} trains all of "
                            f"{backbone.name}: add --unfreeze half, --unfreeze last-N, or a layer's name.")
    flow = Flow(network, backbone.transform.crop)
    layer = _cut_below(flow, blocks, first, settings.unfreeze)
    kept = replace(backbone, layer=layer, storage=settings.storage, views=views)
    return kept, tuple(columns(kept)["shape"])


def _cut_below(flow: Flow, blocks: Sequence[Block], first: int, asked: str) -> str:
    found = _directly_below(flow, blocks, first)
    inside = asked.startswith(f"{blocks[first].name}.")
    if found and not inside:
        return found
    possible = [place for place in range(1, len(blocks)) if _directly_below(flow, blocks, place)]
    nearest = sorted(possible, key=lambda place: abs(place - first - 0.1))[:2]
    places = " or ".join(f"--unfreeze {blocks[place].name}" for place in sorted(nearest))
    why = (f"{asked!r} is inside the block {blocks[first].name!r}, whose input goes round it" if inside else
           f"more than one value passes from below {blocks[first].name!r} to what is above")
    raise PipelineError(f"No cut there: {why}. The nearest: {places or 'none'}.")


def _directly_below(flow: Flow, blocks: Sequence[Block], first: int) -> str | None:
    """Return the cut below a block, if nothing else that could be frozen lies between."""
    trained = {name for block in blocks[first:] for name in block.parameters}
    layer = flow.below(trained)
    return None if layer is None or flow.between(layer, trained) else layer
