"""Frozen pretrained networks: finding them, building them, running them fast.

`resolve` turns a name into a `Backbone`; `Engine` runs one. Importing this room loads no torch.
"""

from .backbone import (
    DEFAULT,
    NETWORK_FILE,
    POOLED,
    PRECISIONS,
    Backbone,
    description,
    from_description,
    listings,
    resolve,
)
from .embedding import Embedder
from .engine import Engine, choose_device

__all__ = [
    "DEFAULT",
    "NETWORK_FILE",
    "POOLED",
    "PRECISIONS",
    "Backbone",
    "Embedder",
    "Engine",
    "choose_device",
    "description",
    "from_description",
    "listings",
    "resolve",
]
