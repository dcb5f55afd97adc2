"""Depthwise convolutions in bfloat16 on a CPU: their gradients are many times slower there than in float32.

Measured with torch 2.15 (one core with AMX, 8 images, channels last): the weights' gradient of a 5 x 5 convolution of
240 channels takes 74 ms in bfloat16 and 12 ms in float32; the input's gradient at stride 2 takes 69 against 1.6 ms.
All else is quicker in bfloat16. So the forward pass stays there, and those two gradients are computed in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


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
        stride, padding, dilation = ctx.settings
        wants_images, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        quick = stride == [1, 1]  # of the input's gradient
        rest = (stride, padding, dilation, False, [0, 0], images.shape[1])
        sizes = [len(weight)] if ctx.has_bias else None
        for_images = None
        if wants_images and quick:
            for_images = torch.ops.aten.convolution_backward(
                gradient, images, weight, sizes, *rest, [True, False, False])[0]
        found = torch.ops.aten.convolution_backward(
            gradient.float(), images.float(), weight.float(), sizes, *rest,
            [wants_images and not quick, wants_weight, wants_bias])
        if wants_images and not quick:
            for_images = found[0].to(images.dtype)
        for_weight = found[1].to(weight.dtype) if wants_weight else None
        for_bias = found[2].to(weight.dtype) if wants_bias else None
        return for_images, for_weight, for_bias, None, None, None


class _Mode(TorchFunctionMode):
    """Sends depthwise convolutions of whatever network through `_Depthwise`."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.conv2d and (found := _depthwise(*args, **(kwargs or {}))):
            return _Depthwise.apply(*found)
        return func(*args, **(kwargs or {}))


def _depthwise(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1,
               padding: Any = 0, dilation: Any = 1, groups: int = 1) -> tuple | None:
    """Return what `_Depthwise` takes, if the convolution is one; the arguments are named as torch names them."""
    if groups < 2 or not groups == input.shape[1] == len(weight) or isinstance(padding, str):
        return None
    tensors = (None if tensor is None else tensor.to(torch.bfloat16) for tensor in (input, weight, bias))
    return (*tensors, *map(_pair, (stride, padding, dilation)))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def quick_depthwise(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return the context for a forward pass in training at `dtype`; it does nothing but in bfloat16 on a CPU."""
    return _Mode() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()
