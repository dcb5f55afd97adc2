"""Fusing convolutions with their activations changes how fast a network runs, never what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.backbones import resolve
from pipeline.backbones.efficientnet_lite import SameConv2d
from pipeline.backbones.layers import FeatureNetwork
from pipeline.engines.preparation import ACTIVATIONS, FusedConv2d, PreparedNetwork, fuse

SIZE = (20, 24)
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


class Small(nn.Module):
    """A convolution, an activation, another convolution, and that activation or another one again."""

    def __init__(self, activation: nn.Module, again: nn.Module, convolution: nn.Module | None = None):
        super().__init__()
        self.first = convolution or nn.Conv2d(3, 8, 3, padding=1)
        self.activation = activation
        self.second = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.first(x))
        return self.again(self.second(x) + x[..., 1:-1:2, 1:-1:2])


def prepared(inner: nn.Module, layer: str = "pooled") -> PreparedNetwork:
    network = PreparedNetwork(resolve("pixels"))
    network.network = FeatureNetwork(inner.eval().requires_grad_(False), layer).to(memory_format=torch.channels_last)
    return network


def rows(network: PreparedNetwork, n: int = 5) -> torch.Tensor:
    pixels = torch.randint(0, 256, (n, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network(pixels)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_activation_is_computed_as_before(kind):
    torch.manual_seed(0)
    network = prepared(Small(kind(), nn.Identity()))
    expected = rows(network)
    assert fuse(network, SIZE) == 2
    assert isinstance(network.network.network.activation, nn.Identity), "it is part of the convolution"
    torch.testing.assert_close(rows(network), expected)


def test_an_activation_that_something_else_feeds_too_stays():
    torch.manual_seed(0)
    shared = nn.SiLU()
    network = prepared(Small(shared, shared))
    expected = rows(network)
    assert fuse(network, SIZE) == 2
    assert network.network.network.activation is shared
    torch.testing.assert_close(rows(network), expected)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_may_be_uneven(kernel, stride):
    torch.manual_seed(0)
    convolution = SameConv2d(3, 8, kernel, stride)
    network = prepared(nn.Sequential(convolution, nn.ReLU6()))
    expected = rows(network)
    assert fuse(network, SIZE) == 1
    torch.testing.assert_close(rows(network), expected)


def test_a_layer_that_is_read_stays_as_it_is():
    torch.manual_seed(0)
    network = prepared(Small(nn.ReLU(), nn.ReLU()), layer="first")
    expected = rows(network)
    assert fuse(network, SIZE) == 0
    torch.testing.assert_close(rows(network), expected)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_where_torch_cannot_fuse_the_network_is_as_it_was(monkeypatch, fault):
    def forward(self, x):
        if fault == "missing":
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")
        return torch.zeros(len(x), 8, *(SIZE if x.shape[1] == 3 else (9, 11)))

    torch.manual_seed(0)
    inner = Small(nn.ReLU(), nn.ReLU())
    network, before = prepared(inner), dict(inner.named_modules())
    expected = rows(network)
    monkeypatch.setattr(FusedConv2d, "forward", forward)
    assert fuse(network, SIZE) == 0
    assert dict(inner.named_modules()) == before
    assert (rows(network) == expected).all()


def test_float16_is_left_alone():
    assert fuse(PreparedNetwork(resolve(weights="random"), torch.float16), (224, 224)) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_default_backbone_is_fused_throughout_and_computes_the_same(precision):
    backbone = resolve()
    plain, fused = (PreparedNetwork(backbone, getattr(torch, precision)) for _ in range(2))
    convolutions = sum(isinstance(module, nn.Conv2d) for module in plain.modules())
    able = precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not with AVX2 alone
    assert convolutions == 49 and fuse(fused, backbone.transform.crop) == (49 if able else 0)
    assert any(type(module) in ACTIVATIONS for module in fused.modules()) != able
    pixels = torch.randint(0, 256, (3, *backbone.transform.crop, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = plain(pixels), fused(pixels)
    assert (found - expected).norm() <= (1e-5 if precision == "float32" else 1e-2) * expected.norm()
