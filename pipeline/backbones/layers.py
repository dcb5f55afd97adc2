"""Reading features at a layer: the pooled vector under the classifier, or any named module."""

from __future__ import annotations

import torch
from torch import nn

from ..core.errors import UnknownNameError

POOLED = "pooled"
MEAN = ":mean"


class _ReachedError(Exception):
    """Carries the layer's output out of the network, so that nothing after the layer is computed."""

    def __init__(self, output: torch.Tensor):
        self.output = output


def _stop(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
    raise _ReachedError(output)


class FeatureNetwork(nn.Module):
    """A backbone that maps normalised images to one feature vector each.

    Parameters
    ----------
    network : nn.Module
        Returns its pooled features: its classifier has been removed.
    layer : str
        ``pooled``, or a module's name as in ``network.named_modules()``, whose output is flattened; with
        ``:mean`` behind it, averaged over positions instead (over H and W of (N, C, H, W), over T of (N, T, C)).

    Raises
    ------
    UnknownNameError
        If the network has no such layer.
    """

    def __init__(self, network: nn.Module, layer: str = POOLED):
        super().__init__()
        self.network = network
        self.layer = layer
        if layer != POOLED:
            modules = {name: module for name, module in network.named_modules() if name}
            name = layer.removesuffix(MEAN)
            if name not in modules:
                raise UnknownNameError("layer", name, [POOLED, *modules])
            modules[name].register_forward_hook(_stop)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to features (N, D)."""
        if self.layer == POOLED:
            return self.network(images).flatten(1)
        try:
            self.network(images)
        except _ReachedError as reached:
            output = reached.output
        else:
            raise RuntimeError(f"the layer {self.layer!r} is not used in a forward pass")
        if self.layer.endswith(MEAN) and output.ndim > 2:
            return output.mean((2, 3) if output.ndim == 4 else 1)
        return output.flatten(1)
