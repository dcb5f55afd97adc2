"""Making a frozen network fast: bytes in, BatchNorm folded into the convolution before it, channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx, nn

if TYPE_CHECKING:
    from .backbone import Backbone


class PreparedNetwork(nn.Module):
    """A frozen backbone from pixels to features, normalisation included. Every engine runs this network.

    Parameters
    ----------
    backbone : Backbone
    precision : torch.dtype
        Of the arithmetic; pixels are normalised in float32 and features come out in float32 all the same.
    device : str
        Where it will run: what layout of memory is fast depends on that.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: Backbone, precision: torch.dtype = torch.float32, device: str = "cpu"):
        super().__init__()
        network = backbone.network()
        fold_batchnorm(network.network)
        self.layout = _layout(network, precision, device)
        self.network = network.to(precision).to(memory_format=self.layout)
        self.precision = precision
        transform = backbone.transform
        mean, std = torch.tensor([transform.mean, transform.std], dtype=torch.float64).view(2, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map bytes (N, H, W, 3) to features (N, D)."""
        images = pixels.permute(0, 3, 1, 2)  # which is channels-last as it stands
        images = images.contiguous(memory_format=self.layout) * self.scale
        return self.network(images.add_(self.shift).to(self.precision)).float()


def _layout(network: nn.Module, precision: torch.dtype, device: str) -> torch.memory_format:
    """Return the layout of images in memory that suits a network on a device.

    cuDNN 9 compiles depthwise convolutions of channels-last images when they are first run, for each size of batch: 3 s
    for EfficientNet-Lite0 on an H200, which 100,000 images do not win back. Products of float32 are no faster in it.
    """
    if device != "cuda":
        return torch.channels_last
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    return torch.contiguous_format if depthwise or precision == torch.float32 else torch.channels_last


class Tracer(fx.Tracer):
    """Records which module's output goes where; modules of any library that hold no submodule are leaves."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Conv2d)) or super().is_leaf_module(module, name)


def fold_batchnorm(network: nn.Module) -> int:
    """Fold each BatchNorm into the convolution that feeds it, in place.

    A BatchNorm is folded where its convolution's output goes nowhere else, both run once and nobody listens
    to either (a hook reads features there). What it does after normalising (timm's come with dropout and
    activation inside) stays.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.

    Returns
    -------
    int
        How many were folded: 0 too for a network whose flow cannot be traced, which is left as it was.
    """
    try:
        graph = Tracer().trace(network)
    except Exception:  # tracing runs the network's own code on stand-ins, which may raise anything
        return 0
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    folded = 0
    for node in graph.nodes:
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = network.get_submodule(str(before.target)), network.get_submodule(str(node.target))
        once = calls.count(str(node.target)) == calls.count(str(before.target)) == 1
        if convolution._forward_hooks or norm._forward_hooks or not once:
            continue
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            _fold(convolution, norm)
            rest = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]
            rest = [part for part in rest if type(part) is not nn.Identity]
            after = rest[0] if len(rest) == 1 else nn.Sequential(*rest)
            network.set_submodule(str(node.target), after if rest else nn.Identity())
            folded += 1
    return folded


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """y = gamma (Wx + b - mean) / sqrt(var + eps) + beta, as one convolution; worked out in float64."""
    assert norm.running_mean is not None and norm.running_var is not None  # checked before, for mypy
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = 1 / torch.sqrt(variance + norm.eps)
    shift = -mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    bias = 0 if convolution.bias is None else convolution.bias.double()
    dtype = convolution.weight.dtype
    convolution.bias = nn.Parameter((bias * scale + shift).to(dtype))
    convolution.weight = nn.Parameter((convolution.weight.double() * scale[:, None, None, None]).to(dtype))
