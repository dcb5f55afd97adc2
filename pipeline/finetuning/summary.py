"""A network as a table: each layer's output, its parameters, those that a strategy trains, its multiply-adds.

The network is only traced, on torch's `meta` device: neither memory nor time for its weights, and no download.
Multiply-adds are counted by torch's own counter, which knows convolutions, matrix products and attention.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..backbones import POOLED, Backbone
from ..backbones.backbone import find_architecture
from ..backbones.layers import FeatureNetwork
from ..backbones.torchvision_models import laid_out
from ..backbones.weights import Weights
from ..core.errors import PipelineError
from .cutting import with_unfreeze
from .network import PREFIX, Classifier
from .settings import STRATEGIES, FinetuneSettings

BYTES = 4  # of a float32
ROOT = PREFIX.removesuffix(".")


@dataclass(frozen=True)
class Row:
    """A layer, or several that are summed up at the chosen depth.

    Attributes
    ----------
    layer : str
        Its name, as `--layer` and `--unfreeze` take it.
    kind : str
        Its class.
    output : tuple of int
        Shape of its output for one image.
    parameters, trainable, multiply_adds : int
        Without those of rows below it.
    """

    layer: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """All layers that features depend on, and the head.

    Attributes
    ----------
    rows : list of Row
        In the order in which they are run.
    input : tuple of int
        Shape of one normalised image.
    parameters, trainable, multiply_adds : int
        Of all rows; multiply-adds for one image, forward.
    parameter_bytes, activation_bytes : int
        In float32; activations are the outputs of all layers for one image, what training keeps of it at least.
    """

    backbone: str
    layer: str
    strategy: str
    rows: list[Row]
    input: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    parameter_bytes: int
    activation_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def summarise(
    backbone: str, layer: str = POOLED, settings: FinetuneSettings | None = None, *, classes: int = 2, depth: int = 2
) -> Summary:
    """Tell what a network consists of, and what fine-tuning would train of it.

    Parameters
    ----------
    backbone, layer : str
        See `pipeline.resolve`; weights are not needed.
    settings : FinetuneSettings, optional
        Its strategy (and `unfreeze`) says what is trained in the last epoch; by default the head alone.
    classes : int
        K, of the head.
    depth : int
        Modules this deep are one row, with all that is in them.

    Raises
    ------
    UnknownNameError
        If there is no such backbone or layer.
    PipelineError
        If `classes` or `depth` is below 1.
    """
    for name, value in (("classes", classes), ("depth", depth)):
        if value < 1:
            raise PipelineError(f"{name} is {value}; it must be 1 or more.")
    settings = settings or FinetuneSettings(strategy="head-only")
    architecture = find_architecture(backbone)
    transform = architecture.transform(None)
    settings = with_unfreeze(settings, Backbone(architecture, Weights("none", "none", dict), transform))
    network = FeatureNetwork(laid_out(architecture), layer, transform.crop)
    image = torch.empty(1, 3, *transform.crop, device="meta")
    with torch.device("meta"), torch.no_grad():
        model = Classifier(network, network(image).shape[1], classes, transform)
        names = [block.name for block in model.blocks]
        model.unfreeze(STRATEGIES[settings.strategy].rates(names, settings, settings.epochs - 1))
        tracer = _Tracer(model.eval())
        tracer.run(image)
    rows = [*tracer.rows(ROOT, network.network, depth), *tracer.rows("head", model.head, depth)]
    parameters, trainable, work = (
        sum(getattr(row, name) for row in rows) for name in ("parameters", "trainable", "multiply_adds")
    )
    return Summary(backbone, layer, settings.strategy, rows, tuple(image.shape[1:]), parameters, trainable, work,
                   BYTES * parameters, BYTES * tracer.activations)


class _Tracer:
    """Notes of every module in one forward pass its output's shape and the floating-point operations inside."""

    def __init__(self, model: Classifier):
        self.model = model
        self.counter = FlopCounterMode(display=False)
        self.activations = 0
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.work: dict[str, int] = {}
        self.learnable = {PREFIX + name for block in model.blocks for name in block.parameters}
        self.learnable |= {f"head.{name}" for name, _ in model.head.named_parameters()}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._begin, name))
            # before the hook that ends the forward pass at the layer where features are read
            module.register_forward_hook(partial(self._end, name), prepend=True)

    def run(self, image: torch.Tensor) -> None:
        """Run backbone and head; not `model(image)`, which would ask for an autocast that meta has not."""
        with self.counter:
            features = self.model.backbone(image)
            for name in self.work.keys() - self.outputs.keys():  # the layer that was reached ended these
                self.work[name] += self.counter.get_total_flops()
            self.model.head(features)

    def _begin(self, name: str, module: nn.Module, inputs: Any) -> None:
        self.work[name] = self.work.get(name, 0) - self.counter.get_total_flops()

    def _end(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.work[name] += self.counter.get_total_flops()
        shape = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()
        self.outputs.pop(name, None)
        self.outputs[name] = shape  # the last to end comes last
        self.activations += prod(shape) if shape and not any(module.children()) else 0

    def rows(self, name: str, module: nn.Module, depth: int) -> list[Row]:
        """Return rows of a module: of its parts, down to `depth`, and before them of what is in none of them."""
        parts = list(module.named_children()) if depth else []
        below = [row for child, part in parts for row in self.rows(f"{name}.{child}", part, depth - 1)]
        own = [parameter for key, parameter in module.named_parameters(recurse=not parts)
               if f"{name}.{key}" in self.learnable]
        rest = self.work.get(name, 0) // 2 - sum(row.multiply_adds for row in below)
        shown = name in self.work and not parts and not isinstance(module, nn.Identity)
        if not (own or rest > 0 or shown):
            return below
        trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        label = "(network)" if name == ROOT else name.removeprefix(PREFIX)
        return [Row(label, type(module).__name__, self._output(name), sum(parameter.numel() for parameter in own),
                    trainable, max(0, rest)), *below]

    def _output(self, name: str) -> tuple[int, ...]:
        if name in self.outputs:
            return self.outputs[name]
        inside = [shape for other, shape in self.outputs.items() if other.startswith(f"{name}.")]
        return inside[-1] if inside else ()
