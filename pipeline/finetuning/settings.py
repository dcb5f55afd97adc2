"""What can be set about fine-tuning, and which parts of a network a strategy trains. Imports no torch.

A strategy sees the network as a row of blocks from input to output, and gives each a factor of the learning rate; 0
is frozen. The head on top is always trained, at the full rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, inf
from typing import Any

from ..backbones import STORAGES
from ..core.errors import PipelineError, UnknownNameError
from ..core.registry import Registry
from ..data.augmentation import AUGMENTATIONS

Factors = Callable[[Sequence[str], "FinetuneSettings", int], list[float]]
STRATEGIES: Registry[Strategy] = Registry("strategy")
OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine", "one-cycle", "constant")
SELECTIONS = ("best-on-val", "last")
CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
AUTO = "auto"
# what may differ between a run and its continuation: none of it decides what is learned
FREE_TO_CHANGE = ("device", "workers", "checkpoint_minutes", "image_memory", "compile", "tensorboard",
                  "log_every")
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "accumulate": (1, 1_000_000),
    "step_size": (1, 100_000),
    "backbone_rate": (0, 1),
    "layer_decay": (0, 1),
    "momentum": (0, 1),
    "gamma": (0, 1),
    "label_smoothing": (0, 1),
    "ema": (0, 1),
    "views": (1, 1000),
    "image_memory": (0, 1),
}


@dataclass(frozen=True)
class Strategy:
    """One way to fine-tune.

    Attributes
    ----------
    summary : str
        A line for the command line.
    factors : callable
        From the blocks' names, the settings and the epoch (from 0) to one factor of the learning rate a block.
    random : bool
        Start the backbone from random weights.
    probe : bool
        Start the head from the solution of logistic regression on the frozen features, rather than from zero.
    interpolate : bool
        At the end, mix the weights from before and after training, in the proportion that is best on val.
    """

    summary: str
    factors: Factors
    random: bool = False
    probe: bool = False
    interpolate: bool = False

    @property
    def hurries(self) -> bool:
        """Whether pretrained weights move at the head's full rate."""
        return self.factors in (_whole, _gradual) and not self.random

    def rates(self, blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
        """Return the blocks' factors of the learning rate in an epoch (from 0): 0 below `unfreeze`."""
        first = first_trained(blocks, settings.unfreeze) if settings.unfreeze else 0
        return [0.0] * first + self.factors(blocks[first:], settings, epoch)


def _whole(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    return [1.0] * len(blocks)


def _head_only(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    return [0.0] * len(blocks)


def _discriminative(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    count = len(blocks)
    return [settings.backbone_rate * settings.layer_decay ** (count - 1 - place) for place in range(count)]


def _gradual(blocks: Sequence[str], settings: FinetuneSettings, epoch: int) -> list[float]:
    # one block more an epoch, or as many as it takes to have them all in the last
    step = ceil(len(blocks) / max(1, settings.epochs - 1))
    return [float(place >= len(blocks) - epoch * step) for place in range(len(blocks))]


def first_trained(blocks: Sequence[str], unfreeze: str) -> int:
    """Return the place of the first block that is trained.

    Parameters
    ----------
    blocks : sequence of str
        Names from input to output.
    unfreeze : str
        ``half``, ``last-N``, or the name of a block, of a layer inside one, or of a group of blocks.

    Raises
    ------
    UnknownNameError, PipelineError
        If there is no such layer, or there are not so many blocks.
    """
    if unfreeze == "half":
        return len(blocks) // 2
    if match := re.fullmatch(r"last-(\d+)", unfreeze):
        count = int(match.group(1))
        if not 1 <= count <= len(blocks):
            raise PipelineError(f"--unfreeze {unfreeze}: the network has {len(blocks)} blocks ({', '.join(blocks)}).")
        return len(blocks) - count
    for place, name in enumerate(blocks):
        if f"{name}.".startswith(f"{unfreeze}.") or f"{unfreeze}.".startswith(f"{name}."):
            return place
    raise UnknownNameError("layer to unfreeze from", unfreeze, ["half", "last-1", *blocks])


STRATEGIES["whole"] = Strategy("all weights at one learning rate", _whole)
STRATEGIES["discriminative"] = Strategy("all weights, the backbone's at a smaller rate", _discriminative)
STRATEGIES["partial"] = Strategy("the last blocks (--unfreeze), those below frozen", _whole)
STRATEGIES["gradual"] = Strategy("one more block unfrozen each epoch, from the top", _gradual)
STRATEGIES["head-only"] = Strategy("the backbone frozen, but run for every image in every epoch", _head_only)
STRATEGIES["scratch"] = Strategy("all weights, from random ones: what pretraining is worth", _whole, random=True)
STRATEGIES["lp-ft"] = Strategy("all weights, the head starting from the solved linear probe", _whole, probe=True)
STRATEGIES["lp-discriminative"] = Strategy(
    "as lp-ft, the backbone at a smaller rate: head first, then all", _discriminative, probe=True
)
STRATEGIES["interpolate"] = Strategy(
    "as lp-ft, then the mix of the weights before and after that is best on val", _whole, probe=True, interpolate=True
)

DEFAULT_PRESET = "one-cycle"
PRESETS: Registry[dict[str, Any]] = Registry("preset")
"""Settings that go together, by name; what is given besides replaces them. `benchmarks/presets.py` compares them."""
PRESETS[DEFAULT_PRESET] = {
    "strategy": "lp-discriminative", "backbone_rate": 0.3, "layer_decay": 0.9, "epochs": 3, "batch_size": 32,
    "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "schedule": "one-cycle",
}  # fmt: skip
PRESETS["tutorial"] = {}  # the defaults of `FinetuneSettings`


@dataclass(frozen=True)
class FinetuneSettings:
    """How a whole network is retrained; the defaults are those of PyTorch's transfer-learning tutorial.

    Parameters
    ----------
    strategy : str
        Which parts of the network learn, and from where they start: a name in `STRATEGIES`.
    unfreeze : str
        What is trained at most: ``half``, ``last-N`` (blocks), or the name of a layer to start from; all below is
        frozen. Empty for all; of `partial`, ``half``. ``auto`` takes the lowest block where the network can be cut with
        at most half of its multiply-adds above, so that an epoch takes about half of a whole one at most.
    cached : bool
        Train from cached activations of the frozen blocks, which are run once, instead of from images.
    views : int
        Of `cached`: how many views of each image are kept, the plain one and further ones of `augmentation`. With one
        there is no augmentation.
    storage : {'float16', 'float32'}
        Of `cached`: how activations are kept.
    backbone_rate : float
        Of `discriminative` and `lp-discriminative`: the backbone's learning rate as a factor of the head's.
    layer_decay : float
        Of these two: each block's rate as a factor of the next one's.
    epochs : int
        Passes over the training images.
    batch_size : int
        Images a step.
    accumulate : int
        Parts that a batch is computed in; gradients add up, so the step is the same and memory is less.
    optimizer : {'sgd', 'adamw'}
        What makes steps of gradients.
    lr : float
        Learning rate at the start (of `one-cycle`: at the top).
    momentum : float
        Of SGD.
    weight_decay : float
        Share of each weight that a unit of learning rate takes away.
    schedule : {'step', 'cosine', 'one-cycle', 'constant'}
        Of the learning rate; `step` multiplies it by `gamma` every `step_size` epochs.
    step_size : int
        Epochs between steps of the schedule `step`.
    gamma : float
        Factor of each of these steps.
    warmup : float
        Epochs during which the rate rises from 0.
    clip : float
        Largest norm of the gradient; 0 for any.
    label_smoothing : float
        Share of each target spread evenly over all classes.
    mixup, cutmix : float
        Parameter of the Beta distribution that mixes images are drawn with; 0 for none. With both, each batch
        gets either, at even odds.
    ema : float
        Decay of the moving average of weights that is evaluated and kept instead of the last weights; 0 for none.
    patience : int
        Stop after so many epochs without a better validation accuracy; 0 for never.
    resample : bool
        Draw training images with replacement, each class equally often.
    class_weight : {'none', 'balanced'}
        Weight of each class in the loss.
    augmentation : str
        How training images are varied, see `pipeline.data.augmentation`; of `cached`, what draws the further views.
    freeze_norm : bool
        Keep every BatchNorm's statistics, also in trained blocks: for batches too small to estimate them.
    select : {'best-on-val', 'last'}
        Which epoch's weights are kept. Without validation images it is the last.
    seed : int
        Of everything random.
    deterministic : bool
        Refuse operations whose result depends on the order of threads.
    precision : {'auto', 'float32', 'bfloat16', 'float16'}
        Of the arithmetic in training; weights stay float32. `auto` takes what the device is quick at.
    device : str
        ``auto`` (any accelerator that torch offers, else the CPU), or a torch device.
    workers : int
        Threads that decode and augment; 0 for one a core.
    compile : bool
        Let `torch.compile` build the network: slow to start, faster on accelerators.
    image_memory : float
        Share of the memory available at the start that decoded images may take, so that later epochs need not
        decode them again; 0 for none. What does not fit is decoded each time: the result is the same.
    checkpoint_minutes : float
        A checkpoint is written after every epoch, and within long ones this often.
    tensorboard : str
        Folder to write each epoch's figures to for TensorBoard; empty for none.
    log_every : int
        Batches between lines with the training loss and accuracy since the last one; 0 for a line an epoch only.

    Raises
    ------
    PipelineError
        If a setting cannot be; it is named, with its value and what is possible.
    """

    strategy: str = "whole"
    unfreeze: str = ""
    cached: bool = False
    views: int = 1
    storage: str = "float16"
    backbone_rate: float = 0.1
    layer_decay: float = 1.0
    epochs: int = 25
    batch_size: int = 4
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "step"
    step_size: int = 7
    gamma: float = 0.1
    warmup: float = 0.0
    clip: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    patience: int = 0
    resample: bool = False
    class_weight: str = "none"
    augmentation: str = "tutorial"
    freeze_norm: bool = False
    select: str = "best-on-val"
    seed: int = 0
    deterministic: bool = False
    precision: str = "auto"
    device: str = "auto"
    workers: int = 0
    compile: bool = False
    image_memory: float = 0.25
    checkpoint_minutes: float = 5.0
    tensorboard: str = ""
    log_every: int = 0

    def __post_init__(self) -> None:
        STRATEGIES[self.strategy]
        _known("optimizer", self.optimizer, OPTIMIZERS)
        _known("schedule", self.schedule, SCHEDULES)
        _known("selection", self.select, SELECTIONS)
        _known("class weight", self.class_weight, CLASS_WEIGHTS)
        _known("precision", self.precision, PRECISIONS)
        AUGMENTATIONS[self.augmentation]
        for field in fields(self):
            if field.type in ("int", "float"):
                _in_range(field.name, getattr(self, field.name), field.type == "int")
        if self.strategy == "partial" and not self.unfreeze:
            object.__setattr__(self, "unfreeze", "half")
        if self.strategy == "whole" and self.unfreeze:
            object.__setattr__(self, "strategy", "partial")  # which is what this says
        if STRATEGIES[self.strategy].random and (self.unfreeze or self.cached):
            raise PipelineError(f"The strategy {self.strategy!r} starts from random weights, all of which are to be "
                                "trained: leave --unfreeze and --cached out.")
        self._check_cached()
        if self.ema == 1:
            raise PipelineError("ema is 1: the average would never move. Use a decay below 1, such as 0.999.")

    @classmethod
    def of(cls, preset: str = DEFAULT_PRESET, **given: Any) -> FinetuneSettings:
        """Return a preset's settings, with those replaced that are given.

        Another strategy that moves pretrained weights at the head's rate gets the backbone's rate for all, where the
        preset has one and no rate is given.

        Raises
        ------
        UnknownNameError
            If there is no such preset.
        """
        settings = {**PRESETS[preset], **given}
        if "lr" in PRESETS[preset] and "lr" not in given and STRATEGIES[settings["strategy"]].hurries:
            settings["lr"] *= settings["backbone_rate"]
        return cls(**settings)

    def _check_cached(self) -> None:
        """Refuse what cached views cannot give, and say what they do."""
        _known("storage", self.storage, STORAGES)
        if not self.cached:
            if self.views != 1:
                raise PipelineError(f"views is {self.views}: cached views are for --cached; without it every epoch "
                                    "draws new ones.")
            return
        for name in ("mixup", "cutmix"):
            if getattr(self, name):
                raise PipelineError(f"{name} mixes pixels, and --cached trains from activations: leave one out.")
        if self.views == 1:
            if self.augmentation not in ("none", FinetuneSettings.augmentation):
                raise PipelineError(f"One cached view of each image is the plain one. For the augmentation "
                                    f"{self.augmentation!r} give --views 2 or more.")
            object.__setattr__(self, "augmentation", "none")

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as a JSON value."""
        return asdict(self)

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what is learned."""
        unused = () if self.cached else ("cached", "views", "storage")
        return {name: value for name, value in self.to_dict().items() if name not in (*FREE_TO_CHANGE, *unused)}

    @property
    def told(self) -> str:
        """Those of them that are not the nearest preset's, in a few words; and that, where it is not the default."""
        changed = {}
        for name in PRESETS:
            usual = self.of(name, strategy=self.strategy).to_dict()
            changed[name] = [f"{key}={value}" for key, value in self.deciding.items() if value != usual[key]]
        nearest = min(changed, key=lambda name: len(changed[name]))
        return ", ".join([*([nearest] if nearest != DEFAULT_PRESET else []), *changed[nearest]])  # fmt: skip


def _in_range(name: str, value: float, whole: bool) -> None:
    low, high = LIMITS.get(name, (0, inf))
    if whole and value != int(value):
        raise PipelineError(f"{name} is {value}; it must be a whole number.")
    if not low <= value <= high or value == inf:
        wanted = f"{low} or more" if high == inf else f"between {low} and {high}"
        raise PipelineError(f"{name} is {value}; it must be {wanted}.")


def _known(kind: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        raise UnknownNameError(kind, name, names)
