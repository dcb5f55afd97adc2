"""A network as a row of blocks: the parts that are frozen or trained together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from .layer_names import POOLED

if TYPE_CHECKING:
    from .layers import FeatureNetwork

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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


def part_names(network: nn.Module) -> list[str]:
    """Return the modules that networks are built of: residual blocks, transformer layers, single layers outside."""
    half = sum(parameter.numel() for parameter in network.parameters()) / 2
    return [part.name for part in _parts("", network, half)]


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
    read = {part.module for part in network.parts}
    places = [place for place, block in enumerate(blocks) if any(map(block.holds, read))]
    return blocks if POOLED in read or not places else blocks[: places[-1] + 1]


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
