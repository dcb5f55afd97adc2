"""Convolutions that take another way give what torch gives."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from finetuning_support import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from pipeline.finetuning.convolutions import quick_convolutions

CPU = torch.device("cpu")
LAYERS = [  # channels in and out, groups, kernel, stride, padding, dilation
    (16, 16, 16, 3, 1, 1, 1), (16, 16, 16, 5, 2, 2, 1), (16, 16, 16, 5, 1, 2, 1), (16, 16, 16, 7, 1, 3, 1),
    (16, 16, 16, 3, 2, 0, 1), (16, 16, 16, 3, 1, 2, 2), (16, 16, 16, (1, 5), 1, (0, 2), 1), (16, 16, 16, 5, 3, 0, 1),
    (16, 24, 1, 1, 1, 0, 1), (16, 24, 1, 1, 2, 0, 1), (16, 24, 2, 1, 1, 0, 1), (16, 24, 1, 3, 1, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_scores_and_gradients_are_those_of_torch_in_float32_on_the_same_numbers(layer, bias, precision):
    torch.manual_seed(0)
    before, after, groups, *shape = layer
    layer = nn.Conv2d(before, after, *shape, groups=groups, bias=bias).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    images = torch.randn(4, 16, 14, 13).bfloat16().float().to(memory_format=torch.channels_last).requires_grad_()
    expected = layer(images)
    gradient = torch.randn_like(expected).bfloat16().float()
    variables = [images, *layer.parameters()]
    reference = torch.autograd.grad(expected, variables, gradient)
    lower = precision == torch.bfloat16
    with torch.autocast("cpu", precision) if lower else nullcontext(), quick_convolutions(CPU):
        found = layer(images)
    assert found.dtype == precision and found.is_contiguous(memory_format=torch.channels_last)
    # bfloat16 has 8 bits
    torch.testing.assert_close(found.float(), expected, atol=0.02 if lower else 1e-5, rtol=0.02 if lower else 1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, variables, gradient.to(precision)), reference, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= (0.01 if lower else 1e-5) * theirs.norm()
        if not lower or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # with AVX2 alone single sums are further off
            torch.testing.assert_close(ours, theirs, atol=0.1 if lower else 1e-4, rtol=0.02 if lower else 1e-4)


def test_depthwise_and_pointwise_ones_take_another_way_however_they_are_called_and_no_others():
    images = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    deep, point = torch.randn(8, 1, 3, 3), torch.randn(4, 8, 1, 1)
    with quick_convolutions(CPU):
        found = [
            F.conv2d(images, deep, groups=8), F.conv2d(images, deep, None, 1, 1, 1, 8), F.conv2d(images, point),
            F.conv2d(images, deep, padding="same", groups=8), F.conv2d(images.contiguous(), point),
            F.conv2d(images, torch.randn(8, 4, 3, 3), groups=2), F.conv2d(images, torch.randn(16, 1, 3, 3), groups=8),
            F.conv2d(images[0], point),
        ]  # fmt: skip
    ways = [type(out.grad_fn).__name__ for out in found]
    assert [way for way in ways[:3] if "Convolution" not in way] == ways[:3]
    assert all("Convolution" in way or "Squeeze" in way for way in ways[3:]), ways


def test_on_an_accelerator_nothing_changes():
    images = torch.randn(2, 8, 9, 9, requires_grad=True)
    with quick_convolutions(torch.device("cuda")):
        assert "Convolution" in type(F.conv2d(images, torch.randn(8, 1, 3, 3), groups=8).grad_fn).__name__
