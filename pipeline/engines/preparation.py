"""Making a frozen network fast: BatchNorm folded into convolutions, channels last, activations in the same pass.

Without the fused pass every activation is one of its own over megabytes, and oneDNN lays the weights out anew for
every batch. These are the operators that torch.compile itself uses on CPUs; calling them directly costs no
compilation.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx, nn

from ..backbones.efficientnet_lite import SameConv2d
from .memory import CPU_BATCH

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # ‖difference‖ / ‖rows‖ to the network as it was


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
        self.layout = memory_layout(network, precision, device)
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


def memory_layout(network: nn.Module, precision: torch.dtype, device: str) -> torch.memory_format:
    """Return the layout of images in memory that suits a network on a device.

    cuDNN 9 compiles depthwise convolutions of channels-last images when they are first run, for each size of batch: 3 s
    for EfficientNet-Lite0 on an H200, which 100,000 images do not win back. Products of float32 are no faster in it.
    """
    if device != "cuda":
        return torch.channels_last
    depthwise = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    return torch.contiguous_format if depthwise or precision == torch.float32 else torch.channels_last


class Tracer(fx.Tracer):
    """Records which module's output goes where; modules of any library that hold no submodule are leaves.

    Nobody listens meanwhile: what reads features at a layer would end the recording there.
    """

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Record the flow of a network."""
        hooks = {module: module._forward_hooks for module in root.modules() if module._forward_hooks}
        for module in hooks:
            module._forward_hooks = OrderedDict()
        try:
            return super().trace(root, concrete_args)
        finally:
            for module, own in hooks.items():
                module._forward_hooks = own

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
        if not once or _apart(network, str(before.target), str(node.target)):
            continue
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            _fold(convolution, norm)
            rest = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]
            rest = [part for part in rest if type(part) is not nn.Identity]
            after = rest[0] if len(rest) == 1 else nn.Sequential(*rest)
            network.set_submodule(str(node.target), after if rest else nn.Identity())
            folded += 1
    return folded


def _apart(network: nn.Module, one: str, other: str) -> bool:
    """Tell whether somebody listens to a module that holds one of these and not the other, or is one of them."""
    listened = [f"{name}." for name, module in network.named_modules() if module._forward_hooks]
    return any(f"{one}.".startswith(name) != f"{other}.".startswith(name) for name in listened)


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
    convolution = str(node.target)
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op != "call_module" or _apart(inner, convolution, str(node.target)):
            break
        module = inner.get_submodule(str(node.target))
        if type(module) in ACTIVATIONS:
            return str(node.target)
        if type(module) is not nn.Identity:
            break
    return ""
