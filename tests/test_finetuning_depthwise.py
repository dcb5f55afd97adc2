"""Depthwise convolutions whose gradients take another way give the same gradients."""

from __future__ import annotations

import pytest
import torch
from finetuning_support import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from pipeline.finetuning.depthwise import _Depthwise, quick_depthwise

CPU = torch.device("cpu")


@pytest.mark.parametrize("kernel, stride, padding, dilation", [(3, 1, 1, 1), (5, 2, 2, 1), (3, 2, 0, 1), (3, 1, 2, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_torchs_in_float32_on_the_same_rounded_numbers(kernel, stride, padding, dilation, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, padding, dilation, groups=16, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    images = torch.randn(4, 16, 14, 14).bfloat16().float().to(memory_format=torch.channels_last).requires_grad_()
    expected = layer(images)
    gradient = torch.randn_like(expected).bfloat16().float()
    variables = [images, *layer.parameters()]
    reference = torch.autograd.grad(expected, variables, gradient)
    with torch.autocast("cpu", torch.bfloat16), quick_depthwise(CPU, torch.bfloat16):
        found = layer(images)
    assert found.dtype == torch.bfloat16 and type(found.grad_fn).__name__ == f"{_Depthwise.__name__}Backward"
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
    for ours, theirs in zip(torch.autograd.grad(found, variables, gradient.bfloat16()), reference, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.02)  # bfloat16 has 8 bits


def test_only_depthwise_convolutions_take_that_way_however_they_are_called():
    images, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(8, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), quick_depthwise(CPU, torch.bfloat16):
        depthwise = [F.conv2d(images, weight, groups=8), F.conv2d(images, weight, None, 1, 1, 1, 8)]
        others = [F.conv2d(images, torch.randn(8, 4, 3, 3), groups=2), F.conv2d(images, torch.randn(4, 8, 1, 1)),
                  F.conv2d(images, torch.randn(16, 1, 3, 3), groups=8)]
    assert all("_Depthwise" in type(out.grad_fn).__name__ for out in depthwise)
    assert not any("_Depthwise" in type(out.grad_fn).__name__ for out in others)


@pytest.mark.parametrize("device, dtype", [("cuda", torch.bfloat16), ("cpu", torch.float32)])
def test_elsewhere_nothing_changes(device, dtype):
    images = torch.randn(2, 8, 9, 9, requires_grad=True)
    with quick_depthwise(torch.device(device), dtype):
        assert "_Depthwise" not in type(F.conv2d(images, torch.randn(8, 1, 3, 3), groups=8).grad_fn).__name__
