"""The network in training: a row of blocks and a linear head, which parts of them learn, and at what precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.blocks import Block, find_blocks
from ..backbones.cuts import Flow
from ..backbones.layer_names import POOLED
from ..backbones.layers import FeatureNetwork
from ..data import Transform
from ..engines.preparation import memory_layout

PREFIX = "backbone.network."


class Classifier(nn.Module):
    """A backbone with a linear head on it.

    The head starts from zero: then its first steps move it alone, and a random head cannot spoil the backbone.

    Parameters
    ----------
    backbone : FeatureNetwork
    features, classes : int
        D and K.
    transform : Transform
        Says how pixels are normalised.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, backbone: FeatureNetwork, features: int, classes: int, transform: Transform):
        super().__init__()
        self.backbone = backbone
        self.blocks = find_blocks(backbone)
        self.head = nn.Linear(features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        std = torch.tensor(transform.std).view(3, 1, 1)
        self._crop = transform.crop
        self._above: tuple[nn.Module, ...] = ()
        self._shape: tuple[int, ...] = ()
        self._layout = torch.channels_last
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(transform.mean).view(3, 1, 1) / std, persistent=False)

    def cut(self, layer: str, shape: Sequence[int], flow: Flow | None = None) -> None:
        """Take a layer's activations instead of images from now on; to be called on the device.

        Parameters
        ----------
        layer : str
            A cut, see `pipeline.backbones.cuts`, or ``pooled``.
        shape : sequence of int
            Of its output for one image.
        flow : Flow, optional
            The network's, where it is known.
        """
        self._shape = tuple(shape)
        if layer == POOLED:
            self._above = (nn.Identity(), nn.Identity())
        else:  # its modules are the backbone's own, which are registered there and nowhere else
            flow = flow or Flow(self.backbone.network, self._crop)
            self._above = (flow.above(layer), flow.above(layer, training=True))

    def placed(self, device: torch.device, precision: torch.dtype) -> Classifier:
        """Move to a device, in the layout of memory that suits it there; return itself."""
        self._layout = memory_layout(self.backbone.network, precision, device.type)
        return self.to(memory_format=self._layout).to(device)

    def prepared(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn bytes (N, H, W, 3) into normalised images (N, 3, H, W), or rows (N, D) into activations in float32.

        Both lie in memory as the network does.
        """
        if not self._above:
            images = inputs.permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
            return (images * self.scale).add_(self.shift)
        shaped = inputs.float().view(-1, *self._shape)
        return shaped.contiguous(memory_format=self._layout) if shaped.ndim == 4 else shaped

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map what `prepared` returns to features (N, D)."""
        if not self._above:
            return self.backbone(inputs)
        return self._above[self.backbone.network.training](inputs).flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W), or activations, to scores (N, K) in float32."""
        features = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            # the head is next to nothing of the work, and where small differences matter
            return self.head(features.float())

    def start_head(self, weight: np.ndarray, bias: np.ndarray) -> None:
        """Set the head's weight (K, D) and bias (K,)."""
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(np.array(weight)))
            self.head.bias.copy_(torch.from_numpy(np.array(bias)))

    def unfreeze(self, factors: Sequence[float]) -> None:
        """Let the blocks with a factor above 0 learn, and no others."""
        self.backbone.requires_grad_(False)
        for block, factor in zip(self.blocks, factors, strict=True):
            for parameter in block.parameters.values():
                parameter.requires_grad_(factor > 0)

    def training_mode(self, factors: Sequence[float], freeze_norm: bool) -> None:
        """Switch what learns to training mode; frozen blocks stay as in evaluation, their BatchNorm included."""
        self.train()
        if not any(factors):
            self.backbone.eval()
        for block, factor in zip(self.blocks, factors, strict=True):
            for module in block.modules if factor == 0 else ():
                module.eval()
        for module in self.modules() if freeze_norm else ():
            if isinstance(module, _BatchNorm):
                module.eval()

    def tensors_of(self, blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
        """Return the head's tensors and those of `blocks`, buffers included, as they are (no copies)."""
        own = {PREFIX + name for block in blocks for name in block.parameters}
        inside = tuple(f"{PREFIX}{name}." for block in blocks for name in block.names)
        return {
            name: tensor for name, tensor in self.state_dict().items()
            if name.startswith(("head.", *inside)) or name in own
        }


def feature_length(backbone: FeatureNetwork, transform: Transform) -> int:
    """Return D."""
    with torch.inference_mode():
        return backbone(torch.zeros(1, 3, *transform.crop)).shape[1]


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the arithmetic; ``auto`` is what the device is quick at without loss of quality."""
    if precision != "auto":
        return getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        chip = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if chip.get("avx512_bf16") or chip.get("amx_bf16") else torch.float32
    return torch.bfloat16 if device.type == "xpu" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context in which the forward pass computes at `dtype`; weights stay float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
