"""EfficientNet-Lite as plain torch modules.

Written out rather than taken from a model library because it is the default backbone: built from
torch alone, the first image runs seconds earlier than behind the import of a whole model zoo.

The architecture is EfficientNet [1]_ without squeeze-and-excitation and with ReLU6 [2]_; its stem,
head, first and last stage keep their size at every scale. Convolutions pad as TensorFlow's "SAME".

References
----------
.. [1] Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
.. [2] Google, "EfficientNet-Lite", 2020, the variants for mobile processors.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

# stages of the smallest network: repeats, kernel, stride, expansion, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, FEATURES = 32, 1280


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME": a stride of 2 may pad more after than before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        left, right, top, bottom = self.pads(*x.shape[-2:])
        if (left, top) == (right, bottom):
            # symmetric: the convolution pads by itself, without a copy of its input
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, groups=self.groups)

    def pads(self, rows: int, columns: int) -> tuple[int, int, int, int]:
        """Return what is added to an image of this size: left, right, top, bottom."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        tall, wide = (max(0, (math.ceil(n / stride) - 1) * stride + kernel - n) for n in (rows, columns))
        return wide // 2, wide - wide // 2, tall // 2, tall - tall // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        if expansion != 1:
            self.expand_conv = SameConv2d(inputs, inner, 1, bias=False)
            self.bn0 = _norm(inner)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = _norm(inner)
        self.project_conv = SameConv2d(inner, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = self.relu(self.bn0(self.expand_conv(x))) if hasattr(self, "expand_conv") else x
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its ImageNet classifier: images in, pooled features out.

    Parameters
    ----------
    width, depth : float
        Multipliers of the channels and of the repeats; 1 and 1 give Lite0.
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2, bias=False)
        self.bn0 = _norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            outputs = round_channels(outputs * width)
            if 0 < stage < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = SameConv2d(channels, FEATURES, 1, bias=False)
        self.bn1 = _norm(FEATURES)
        self.relu = nn.ReLU6(inplace=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to features (N, 1280)."""
        x = self.relu(self.bn0(self.conv_stem(x)))
        x = self.relu(self.bn1(self.conv_head(self.blocks(x))))
        return x.mean((2, 3))


def round_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, going down by no more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def convert_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the published weights' tensors to this module's names.

    The published names are these with an underscore before each part; their classifier (``_fc``) is left out.
    """
    renamed = {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in state.items()}
    return {key: value for key, value in renamed.items() if not key.startswith("fc.")}
