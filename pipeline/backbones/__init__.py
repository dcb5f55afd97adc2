"""Frozen pretrained networks: finding them, building them, running them fast.

`resolve` turns a name into a `Backbone`; an `Engine` runs one. Importing this room loads no torch.
"""

from .backbone import (
    DECODERS,
    DEFAULT,
    NETWORK_FILE,
    POOLED,
    PRECISIONS,
    Backbone,
    as_asked,
    as_described,
    description,
    from_description,
    listings,
    resolve,
)
from .embedding import Embedder
from .engine import ENGINES, Engine, make_engine
from .joined import JoinedBackbone, of_run
from .openvino_engine import is_prepared
from .remembered import resolve_again
from .torch_engine import TorchEngine, choose_device

__all__ = [
    "DECODERS",
    "DEFAULT",
    "ENGINES",
    "NETWORK_FILE",
    "POOLED",
    "PRECISIONS",
    "Backbone",
    "Embedder",
    "Engine",
    "JoinedBackbone",
    "TorchEngine",
    "as_asked",
    "as_described",
    "choose_device",
    "description",
    "from_description",
    "is_prepared",
    "listings",
    "make_engine",
    "of_run",
    "resolve",
    "resolve_again",
]
