"""Convolutions in training on a CPU, where torch's way is slow: 1 x 1, and depthwise ones.

Measured with torch 2.15 on one core with AMX, EfficientNet-Lite0, 4 images, channels last, a step's sum:

- The 1 x 1 convolutions as matrix products: forward, input's and weights' gradient 100 instead of 123 ms in float32,
  40 instead of 57 in bfloat16. With two threads on a busy machine, their weights' gradient in bfloat16 takes 21 ms of
  CPU instead of 390, as torch's kernel waits for the other thread by spinning.
- Depthwise weights' gradients of 5 x 5 take 58 ms in float32 and 247 in bfloat16; in columns no wider than 3, for which
  there is a quick kernel, a tenth of that in bfloat16.
- The input's gradient of a strided depthwise convolution takes 60 ms in bfloat16; as a convolution of the gradient with
  zeros between its values a tenth (4 x 96 x 113 x 113: 5.4 ms; in float32, cast back: 11.9).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

QUICK = 3  # columns of the depthwise kernels whose gradients are computed quickly


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(images, weight)
        ctx.settings = (stride, padding, dilation)
        ctx.has_bias = bias is not None
        return torch.ops.aten.convolution(
            images, weight, bias, stride, padding, dilation, False, [0, 0], images.shape[1]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        images, weight = ctx.saved_tensors
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        for_images = _input_gradient(gradient, images, weight, *ctx.settings) if wants_images else None
        for_weight = _weight_gradient(gradient, images, weight, *ctx.settings) if wants_weight else None
        for_bias = gradient.sum((0, 2, 3)) if ctx.has_bias and wants_bias else None
        return for_images, for_weight, for_bias, None, None, None


def _backward(gradient, images, weight, stride, padding, dilation, mask):
    rest = (stride, padding, dilation, False, [0, 0], images.shape[1], mask)
    return torch.ops.aten.convolution_backward(gradient, images, weight, None, *rest)


def _input_gradient(gradient, images, weight, stride, padding, dilation):
    reach = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
    around = [length - before for length, before in zip(reach, padding, strict=True)]
    if stride == [1, 1] or gradient.dtype == torch.float32 or min(around) < 0:
        return _backward(gradient, images, weight, stride, padding, dilation, [True, False, False])[0]
    # what a transposed convolution is by definition: zeros between the gradients, and the kernel turned round
    sides = [side + length - 2 * edge for side, length, edge in zip(images.shape[2:], reach, around, strict=True)]
    shape = (*gradient.shape[:2], *sides)
    spread = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[..., :: stride[0], :: stride[1]][..., : gradient.shape[2], : gradient.shape[3]] = gradient
    return torch.conv2d(spread, weight.flip(2, 3), None, 1, around, dilation, images.shape[1])


def _weight_gradient(gradient, images, weight, stride, padding, dilation):
    """Compute the gradient of a kernel in columns, each that of a narrow kernel on shifted images."""
    mask = [False, True, False]
    width = weight.shape[3]
    if dilation != [1, 1] or width <= QUICK:
        return _backward(gradient, images, weight, stride, padding, dilation, mask)[1]
    reach = stride[1] * (gradient.shape[3] - 1) - images.shape[3]
    found = []
    for left in range(0, width, QUICK):
        columns = weight[..., left : left + QUICK]
        before = padding[1] - left
        seen = F.pad(images, (before, reach - before + columns.shape[3]))  # a negative number cuts off
        found.append(_backward(gradient, seen, columns, stride, [padding[0], 0], dilation, mask)[1])
    return torch.cat(found, 3)


class _Mode(TorchFunctionMode):
    """Sends convolutions of whatever network the quicker way."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.conv2d:
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
              padding: Any = 0, dilation: Any = 1, groups: int = 1) -> torch.Tensor:
    """Do what `torch.conv2d` does; the arguments are named as there."""
    if isinstance(padding, str) or input.ndim != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    steps, around, apart = map(_pair, (stride, padding, dilation))
    if 1 < groups == input.shape[1] == len(weight):
        lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        tensors = (None if tensor is None else tensor.to(lower) for tensor in (input, weight, bias))
        return _Depthwise.apply(*tensors, steps, around, apart)
    plain = groups == 1 and tuple(weight.shape[2:]) == (1, 1) and steps == [1, 1] and around == [0, 0]
    if plain and input.is_contiguous(memory_format=torch.channels_last):
        return F.linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def quick_convolutions(device: torch.device) -> AbstractContextManager:
    """Return the context for a forward pass in training; it does nothing but on a CPU."""
    return _Mode() if device.type == "cpu" else nullcontext()
