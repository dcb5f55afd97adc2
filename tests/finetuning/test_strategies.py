"""What each strategy trains and how fast, on networks of different make."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.backbones.blocks import find_blocks
from pipeline.backbones.layers import FeatureNetwork
from pipeline.core.errors import PipelineError, UnknownNameError
from pipeline.finetuning import STRATEGIES, FinetuneSettings
from pipeline.finetuning.optimisation import rate_factor
from pipeline.finetuning.settings import first_trained

BLOCKS = ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]


def factors(strategy: str, epoch: int = 0, **settings) -> list[float]:
    return STRATEGIES[strategy].rates(BLOCKS, FinetuneSettings(strategy=strategy, **settings), epoch)


def test_choosing_a_strategy_imports_no_torch():
    code = "import sys; from pipeline.finetuning import STRATEGIES, FinetuneSettings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_gives_each_block_a_factor_between_0_and_1_in_every_epoch(strategy):
    for epoch in range(5):
        found = factors(strategy, epoch, epochs=5)
        assert len(found) == len(BLOCKS) and all(0 <= factor <= 1 for factor in found)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_no_strategy_freezes_a_block_again(strategy):
    for epoch in range(1, 7):
        before, after = factors(strategy, epoch - 1, epochs=7), factors(strategy, epoch, epochs=7)
        assert all(late >= early for early, late in zip(before, after, strict=True))


def test_partial_trains_the_last_half_unless_told_otherwise():
    assert factors("partial") == [0, 0, 1, 1, 1]
    assert factors("partial", unfreeze="last-1") == [0, 0, 0, 0, 1]
    assert factors("partial", unfreeze="layer2") == [0, 0, 0, 1, 1]
    assert factors("partial", unfreeze="layer1.1.conv2") == [0, 0, 1, 1, 1]


def test_layer_wise_decay_multiplies_down_to_the_first_block():
    assert factors("discriminative", backbone_rate=0.5, layer_decay=0.1) == pytest.approx([5e-5, 5e-4, 5e-3, 5e-2, 0.5])
    assert factors("discriminative") == [0.1] * 5


def test_gradual_unfreezes_one_more_block_each_epoch_from_the_top_and_ends_with_all():
    assert [sum(factors("gradual", epoch, epochs=10)) for epoch in range(7)] == [0, 1, 2, 3, 4, 5, 5]
    assert factors("gradual", 1, epochs=10) == [0, 0, 0, 0, 1]
    assert sum(factors("gradual", 2, epochs=3)) == 5


def test_unknown_layer_is_answered_with_the_layers_there_are():
    with pytest.raises(UnknownNameError, match=r"'layer1.3'.*layer1\.1"):
        first_trained(BLOCKS, "layer1.3")
    with pytest.raises(PipelineError, match="5 blocks"):
        first_trained(BLOCKS, "last-6")


@pytest.mark.parametrize("setting, said", [
    ({"strategy": "hole"}, "Did you mean 'whole'"), ({"optimizer": "adam"}, "adamw"), ({"schedule": "cosin"}, "cosine"),
    ({"epochs": 0}, "epochs is 0"), ({"lr": -1}, "lr is -1"), ({"momentum": 2}, "between 0 and 1"), ({"ema": 1}, "ema"),
    ({"augmentation": "tutorail"}, "tutorial"), ({"lr": float("nan")}, "lr is nan"), ({"epochs": 1.5}, "whole number"),
])
def test_impossible_settings_are_refused_by_name(setting, said):
    with pytest.raises(PipelineError, match=said):
        FinetuneSettings(**setting)


def names_of(network: nn.Module, layer: str = "pooled") -> list[str]:
    return [block.name for block in find_blocks(FeatureNetwork(network, layer))]


def test_blocks_of_a_resnet_are_its_stem_and_residual_blocks():
    from pipeline.backbones.torchvision_models import skeleton

    network = skeleton("resnet18")
    blocks = find_blocks(FeatureNetwork(network))
    assert [block.name for block in blocks] == ["conv1", *(f"layer{n}.{m}" for n in (1, 2, 3, 4) for m in (0, 1))]
    assert blocks[0].names == ["conv1", "bn1", "relu", "maxpool"]


@pytest.mark.parametrize("name, count", [("vgg16", 15), ("vit_b_16", 13), ("densenet121", 62), ("convnext_tiny", 22)])
def test_every_parameter_is_in_exactly_one_block(name, count):
    from pipeline.backbones.torchvision_models import shapes_only, skeleton

    with shapes_only():
        network = skeleton(name)
    blocks = find_blocks(FeatureNetwork(network))
    found = [key for block in blocks for key in block.parameters]
    assert sorted(found) == sorted(key for key, _ in network.named_parameters())
    assert len(blocks) == count


def test_blocks_end_where_features_are_read():
    from pipeline.backbones.efficientnet_lite import EfficientNetLite

    assert names_of(EfficientNetLite())[-1] == "conv_head"
    assert names_of(EfficientNetLite(), "blocks.5")[-1] == "blocks.5"
    assert names_of(EfficientNetLite(), "blocks.5.project_conv:mean")[-1] == "blocks.5"
    assert names_of(nn.Flatten()) == []


def rates(epochs: int, steps: int = 1, **settings) -> list[float]:
    chosen = FinetuneSettings(epochs=epochs, **settings)
    return [rate_factor(chosen, epoch + step / steps) for epoch in range(epochs) for step in range(steps)]


def reference(scheduler, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_schedules_equal_torchs_own():
    def optimizer():
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)

    lr = torch.optim.lr_scheduler
    assert rates(20) == pytest.approx(reference(lr.StepLR(optimizer(), 7, 0.1), 20))
    assert rates(20, schedule="cosine") == pytest.approx(reference(lr.CosineAnnealingLR(optimizer(), 20), 20))
    assert rates(20, schedule="constant") == [1.0] * 20


def test_one_cycle_rises_to_the_full_rate_and_falls_to_nothing():
    found = rates(100, schedule="one-cycle")
    assert found[0] == pytest.approx(1 / 25) and max(found) == pytest.approx(1.0) and found[-1] < 0.002
    assert found.index(max(found)) == 30


def test_warm_up_rises_in_equal_steps():
    assert rates(4, 2, schedule="constant", warmup=2.0)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
