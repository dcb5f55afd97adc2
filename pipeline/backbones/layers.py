"""Reading features at layers: the pooled vector under the classifier, any named module, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..core.errors import PipelineError, UnknownNameError
from .layer_names import AND, POOLED, STAGES, Part, position_axes, several
from .torchvision_models import laid_out

if TYPE_CHECKING:
    from .backbone import Backbone

CROP = (224, 224)


def _places(output: torch.Tensor) -> tuple[int, ...]:
    return tuple(axis + 1 for axis in position_axes(output.shape[1:]))


def _mean(output: torch.Tensor) -> torch.Tensor:
    if output.ndim <= 2:
        return output.flatten(1)
    return output.mean((2, 3) if output.ndim == 4 else 1)


def _max(output: torch.Tensor) -> torch.Tensor:
    return output.amax(_places(output)) if output.ndim > 2 else output.flatten(1)


def _mean_and_max(output: torch.Tensor) -> torch.Tensor:
    if output.ndim <= 2:
        return output.flatten(1)
    return torch.cat([output.mean(_places(output)), output.amax(_places(output))], 1)


def _first_token(output: torch.Tensor) -> torch.Tensor:
    if output.ndim != 3:
        raise PipelineError(f"':cls' takes the first of an image's tokens (T, C); this layer gives "
                            f"{tuple(output.shape[1:])}. Use :mean, :max or :meanmax.")
    return output[:, 0]


_POOL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda output: output.flatten(1),
    "mean": _mean,
    "max": _max,
    "meanmax": _mean_and_max,
    "cls": _first_token,
}


class _ReachedError(Exception):
    """Leaves the network once all layers are read, so that nothing after them is computed."""


_vectors: ContextVar[dict[Part, torch.Tensor]] = ContextVar("vectors")  # of one forward pass, in one thread


class FeatureNetwork(nn.Module):
    """A backbone that maps normalised images to one feature vector each.

    Parameters
    ----------
    network : nn.Module
        Returns its pooled features: its classifier has been removed.
    layer : str
        ``pooled``, or a module's name as in ``network.named_modules()``, whose output is flattened. Behind a name,
        ``:mean``, ``:max`` or ``:meanmax`` pool over positions (H and W of (N, C, H, W), T of (N, T, C)) and ``:cls``
        takes the first token of (N, T, C). ``A+B`` reads several, side by side in this order; ``stages`` the pooled
        output and mean and maximum of each stage, see `pipeline.backbones.cuts.stages`.
    crop : (int, int)
        Height and width of its images, which stages depend on.

    Raises
    ------
    UnknownNameError
        If the network has no such layer, or there is no such pooling.
    PipelineError
        If stages were asked for and cannot be found.
    """

    def __init__(self, network: nn.Module, layer: str = POOLED, crop: tuple[int, int] = CROP):
        super().__init__()
        self.network = network
        self.layer = layer
        self.parts = _parts(network, layer, crop)
        modules = {name: module for name, module in network.named_modules() if name}
        for name in dict.fromkeys(part.module for part in self.parts if part.module != POOLED):
            if name not in modules:
                raise UnknownNameError("layer", name, [POOLED, STAGES, *modules])
            own = [part for part in self.parts if part.module == name]
            modules[name].register_forward_hook(partial(_read, own, self._enough))

    @property
    def _enough(self) -> int:
        """How many vectors complete a row before the network's end; 0 where its end is part of it."""
        parts = set(self.parts)
        return 0 if any(part.module == POOLED for part in parts) else len(parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to features (N, D)."""
        if self.layer == POOLED:
            return self.network(images).flatten(1)
        vectors = self.vectors(images)
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)

    def vectors(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised images (N, 3, H, W) to what each of `parts` gives, (N, its columns)."""
        found: dict[Part, torch.Tensor] = {}
        token = _vectors.set(found)
        try:
            with suppress(_ReachedError):
                found[Part(POOLED)] = self.network(images).flatten(1)
            if missing := [part for part in self.parts if part not in found]:
                raise RuntimeError(f"the layer {missing[0].module!r} is not used in a forward pass")
            return [found[part] for part in self.parts]
        finally:
            _vectors.reset(token)


@lru_cache(maxsize=8)
def columns(backbone: Backbone) -> dict[str, Any]:
    """Return how the columns of a backbone's rows are made up, as JSON values; empty for an ordinary vector.

    Found without weights or arithmetic, on torch's device `meta`.

    Returns
    -------
    dict
        Of activations their `shape`, (C, H, W) or (T, C); of several layers `groups`, the name and number of columns of
        each, in order.
    """
    if not (backbone.storage or several(backbone.layer)):
        return {}
    crop, shapes = backbone.transform.crop, list[list[int]]()
    reading = FeatureNetwork(laid_out(backbone.architecture), backbone.layer, crop)
    if backbone.storage:
        layer = reading.network.get_submodule(backbone.layer)
        layer.register_forward_hook(lambda module, inputs, output: shapes.append([*output.shape[1:]]), prepend=True)
    with torch.no_grad():
        vectors = reading.vectors(torch.empty(1, 3, *crop, device="meta"))
    if backbone.storage:
        return {"shape": shapes[0]}
    return {"groups": [{"layer": str(part), "columns": vector.shape[1]}
                       for part, vector in zip(reading.parts, vectors, strict=True)]}


def _read(parts: Sequence[Part], enough: int, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
    found = _vectors.get(None)
    if found is None or parts[0] in found:  # of a module that runs several times, the first output counts
        return
    for part in parts:  # at once: what comes next may overwrite the output in place
        found[part] = _POOL[part.pooling](output)
    if len(found) == enough:
        raise _ReachedError


def _parts(network: nn.Module, layer: str, crop: tuple[int, int]) -> list[Part]:
    found: list[Part] = []
    for text in layer.split(AND):
        if text == STAGES:
            from .cuts import stages

            found += [Part(POOLED), *(Part(name, "meanmax") for name in stages(network, crop))]
        else:
            found.append(Part.parse(text))
    return list(dict.fromkeys(found))
