"""Features at several layers at once are those of each by itself, side by side."""

from __future__ import annotations

import pytest
import torch

from pipeline.backbones import resolve
from pipeline.backbones.layers import columns
from pipeline.core.errors import PipelineError, UnknownNameError

IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def rows(layer: str, images: torch.Tensor = IMAGES, name: str = "efficientnet_lite0", **more) -> torch.Tensor:
    with torch.no_grad():
        return resolve(name, layer=layer, **more).network()(images)


def test_several_layers_side_by_side_are_each_by_itself():
    together = rows("blocks.3:max+pooled+blocks.10:meanmax+blocks.10")
    parts = [rows(layer) for layer in ("blocks.3:max", "pooled", "blocks.10:meanmax", "blocks.10")]
    assert torch.equal(together, torch.cat(parts, 1))


def test_poolings_are_what_they_are_called():
    whole = rows("blocks.10").view(2, 112, 14, 14)
    assert torch.allclose(rows("blocks.10:mean"), whole.mean((2, 3)), atol=1e-6)
    assert torch.equal(rows("blocks.10:max"), whole.amax((2, 3)))
    both = rows("blocks.10:meanmax")
    assert torch.allclose(both[:, :112], whole.mean((2, 3)), atol=1e-6)
    assert torch.equal(both[:, 112:], rows("blocks.10:max"))


def test_the_first_token_of_a_transformer():
    images = torch.randn(2, 3, 160, 160)
    tokens = rows("blocks.3", images, "timm:test_vit", weights="random").view(2, -1, 64)
    assert torch.equal(rows("blocks.3:cls", images, "timm:test_vit", weights="random"), tokens[:, 0])
    with pytest.raises(PipelineError, match="meanmax"):
        rows("blocks.3:cls")


def test_stages_hold_the_pooled_features_first_and_say_what_their_columns_are():
    backbone = resolve(layer="stages")
    found = rows("stages")
    groups = columns(backbone)["groups"]
    assert groups[0] == {"layer": "pooled", "columns": 1280}
    assert [one["layer"] for one in groups[-3:]] == ["blocks.10:meanmax", "blocks.14:meanmax", "blocks.15:meanmax"]
    assert sum(one["columns"] for one in groups) == found.shape[1]
    assert torch.equal(found[:, :1280], rows("pooled"))
    assert backbone.spec != resolve().spec


@pytest.mark.parametrize("layer, said", [("blocks.3:mena", "Did you mean 'mean'"), ("blocks.33+pooled", "blocks.3"),
                                         ("stage", "stages")])
def test_a_mistyped_layer_is_named(layer, said):
    with pytest.raises(UnknownNameError, match=said):
        rows(layer)


def test_nothing_after_the_last_layer_is_computed():
    network = resolve(layer="blocks.1:mean+blocks.2:max").network()
    network.network.blocks[5].forward = lambda images: pytest.fail("computed in vain")
    with torch.no_grad():
        assert network(IMAGES).shape == (2, 24 + 24)
