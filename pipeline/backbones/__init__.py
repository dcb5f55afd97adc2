"""Frozen pretrained networks: finding them, with their weights and transforms, and building them.

`resolve` turns a name into a `Backbone`. Importing this room loads no torch.
"""

from __future__ import annotations

from .backbone import (
    DECODERS,
    DEFAULT,
    NETWORK_FILE,
    PRECISIONS,
    STORAGES,
    Backbone,
    JoinedBackbone,
    as_asked,
    as_described,
    description,
    from_description,
    listings,
    names,
    own_backbone,
    resolve,
)
from .layer_names import POOLED, several
from .name_cache import resolve_again

__all__ = [
    "DECODERS",
    "DEFAULT",
    "NETWORK_FILE",
    "POOLED",
    "PRECISIONS",
    "STORAGES",
    "Backbone",
    "JoinedBackbone",
    "as_asked",
    "as_described",
    "description",
    "from_description",
    "listings",
    "names",
    "own_backbone",
    "resolve",
    "resolve_again",
    "several",
]
