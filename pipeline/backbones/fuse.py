"""On a CPU: each convolution and the activation after it in one pass, its weights laid out beforehand.

Without it every activation is a pass of its own over megabytes, and oneDNN lays the weights out anew for every batch.
These are the operators that torch.compile itself uses on CPUs; calling them directly costs no compilation.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import fx, nn

from .batches import CPU_BATCH
from .efficientnet_lite import SameConv2d
from .prepare import PreparedNetwork, Tracer

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # ‖difference‖ / ‖rows‖ to the network as it was


class FusedConv2d(nn.Module):
    """A convolution and an activation, for inputs of one size.

    Parameters
    ----------
    convolution : Conv2d
    activation : (str, list of float)
        oneDNN's name of it, and its numbers.
    size : (C, H, W)
        Of its input.
    """

    def __init__(self, convolution: nn.Conv2d, activation: tuple[str, list[float]], size: torch.Size):
        super().__init__()
        self.uneven: list[int] = []  # what is added on each side, where that differs
        padding = list(convolution.padding)
        if isinstance(convolution, SameConv2d):
            left, right, top, bottom = convolution.pads(*size[-2:])
            padding = [top, left] if (left, top) == (right, bottom) else [0, 0]
            self.uneven = [] if (left, top) == (right, bottom) else [left, right, top, bottom]
        stride, dilation = list(convolution.stride), list(convolution.dilation)
        rows, columns = size[-2] + sum(self.uneven[2:]), size[-1] + sum(self.uneven[:2])
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            convolution.weight.detach(), padding, stride, dilation, convolution.groups,
            [CPU_BATCH, size[0], rows, columns],
        )  # fmt: skip
        self.bias = None if convolution.bias is None else convolution.bias.detach()
        self.rest = (padding, stride, dilation, convolution.groups, *activation, "")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        if self.uneven:
            x = nn.functional.pad(x, self.uneven)
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.rest)


def fuse(network: PreparedNetwork, size: tuple[int, int]) -> int:
    """Fuse the convolutions of a network that runs on a CPU, in place.

    Parameters
    ----------
    network : PreparedNetwork
    size : (int, int)
        Height and width of its images.

    Returns
    -------
    int
        How many convolutions were fused: 0 where this build of torch cannot, or the rows would differ; the network
        then is as it was.
    """
    if network.precision not in TOLERANCE:
        return 0
    inner, replaced = network.network.network, dict[str, nn.Module]()
    pixels = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            expected, sizes = _run(network, inner, pixels)
            fresh = _replacements(inner, sizes)
            for name, module in fresh.items():
                replaced[name] = inner.get_submodule(name)
                inner.set_submodule(name, module.eval())
            difference = network(pixels) - expected
        if difference.norm() <= TOLERANCE[network.precision] * expected.norm():
            return sum(isinstance(module, FusedConv2d) for module in fresh.values())
    except Exception:  # these operators are torch's own business, and may go or change
        pass
    for name, module in replaced.items():
        inner.set_submodule(name, module)
    return 0


def _run(
    network: PreparedNetwork, inner: nn.Module, pixels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Size]]:
    """Return the rows of these images, and the (C, H, W) that each convolution saw."""
    names = {module: name for name, module in inner.named_modules() if isinstance(module, nn.Conv2d)}
    sizes: dict[str, torch.Size] = {}

    def note(module: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes[names[module]] = inputs[0].shape[1:]

    hooks = [module.register_forward_pre_hook(note) for module in names]
    try:
        return network(pixels), sizes
    finally:
        for hook in hooks:
            hook.remove()


def _replacements(inner: nn.Module, sizes: dict[str, torch.Size]) -> dict[str, nn.Module]:
    """Return what takes the place of which modules: fused convolutions, and nothing for activations they include."""
    nodes = [node for node in Tracer().trace(inner).nodes if node.op == "call_module"]
    calls = Counter(str(node.target) for node in nodes)
    after = {str(node.target): _activation_after(node, inner) for node in nodes
             if str(node.target) in sizes and calls[str(node.target)] == 1 and _plain(inner, str(node.target))}
    fed = Counter(name for name in after.values() if name)
    # a module that something else feeds too has to stay, and so does its work
    included = {name for name, times in fed.items() if times == calls[name]}
    kinds = {name: ACTIVATIONS[type(inner.get_submodule(name))] for name in included}
    found: dict[str, nn.Module] = {name: nn.Identity() for name in included}
    for name, activation in after.items():
        convolution = cast(nn.Conv2d, inner.get_submodule(name))
        found[name] = FusedConv2d(convolution, kinds.get(activation, ("none", [])), sizes[name])
    return found


def _plain(inner: nn.Module, name: str) -> bool:
    """Tell whether a module is a convolution that pads with zeros by a known rule, and that nobody listens to."""
    module = inner.get_submodule(name)
    return (type(module) in (nn.Conv2d, SameConv2d) and not module._forward_hooks and module.padding_mode == "zeros"
            and not isinstance(module.padding, str))


def _activation_after(node: fx.Node, inner: nn.Module) -> str:
    """Return the name of the activation that alone takes a module's output; empty if there is none."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module":
            break
        module = inner.get_submodule(str(node.target))
        if module._forward_hooks:
            break
        if type(module) in ACTIVATIONS:
            return str(node.target)
        if type(module) is not nn.Identity:
            break
    return ""
