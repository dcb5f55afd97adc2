"""The network in training: a row of blocks and a linear head, which parts of them learn, and at what precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbones.layers import MEAN, POOLED, FeatureNetwork
from ..data import Transform

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PREFIX = "backbone.network."


@dataclass
class Block:
    """Consecutive layers that are frozen or trained together.

    Attributes
    ----------
    names : list of str
        The modules in it, as in ``network.named_modules()``; the first names the block.
    modules : list of nn.Module
    parameters : dict of str to nn.Parameter
        By their names in the network.
    """

    names: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its first module."""
        return self.names[0]

    def holds(self, layer: str) -> bool:
        """Tell whether the layer is in this block, or the block in that layer."""
        return any(f"{name}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{name}.") for name in self.names)

    def absorb(self, other: Block) -> None:
        """Take in what the other block holds."""
        self.names += other.names
        self.modules += other.modules
        self.parameters |= other.parameters


def find_blocks(network: FeatureNetwork) -> list[Block]:
    """Return the blocks of a backbone that its features depend on, in the order in which the network names them.

    Containers are opened, and so is a module that holds more than half of all parameters, down to the parts that
    networks are built of (a residual block, a transformer layer). A part with nothing but biases and scales, such
    as a norm, belongs to the one before it; so does one without parameters.
    """
    half = sum(parameter.numel() for parameter in network.network.parameters()) / 2
    blocks: list[Block] = []
    for part in _parts("", network.network, half):
        matrices = any(parameter.ndim > 1 for parameter in part.parameters.values())
        if blocks and not (matrices and _has_matrices(blocks[-1])):
            blocks[-1].absorb(part)
        else:
            blocks.append(part)
    blocks = [block for block in blocks if block.parameters]
    if network.layer == POOLED:
        return blocks
    places = [place for place, block in enumerate(blocks) if block.holds(network.layer.removesuffix(MEAN))]
    return blocks[: places[-1] + 1] if places else blocks


def _has_matrices(block: Block) -> bool:
    return any(parameter.ndim > 1 for parameter in block.parameters.values())


def _parts(name: str, module: nn.Module, half: float) -> Iterator[Block]:
    size = sum(parameter.numel() for parameter in module.parameters())
    children = list(module.named_children())
    prefix = f"{name}." if name else ""
    if not children or not (isinstance(module, CONTAINERS) or size > half or not name):
        own = {prefix + key: parameter for key, parameter in module.named_parameters()}
        yield Block([name], [module], own)
        return
    # what an opened module holds itself (a class token, position embeddings) goes with its first part that learns
    loose = {prefix + key: parameter for key, parameter in module.named_parameters(recurse=False)}
    for child, part in children:
        for block in _parts(prefix + child, part, half):
            if block.parameters:
                block.parameters |= loose
                loose = {}
            yield block


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
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(transform.mean).view(3, 1, 1) / std, persistent=False)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn bytes (N, H, W, 3) into normalised images (N, 3, H, W), channels last in memory."""
        return (pixels.permute(0, 3, 1, 2) * self.scale).add_(self.shift)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to scores (N, K) in float32."""
        features = self.backbone(images)
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
