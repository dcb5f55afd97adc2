"""The `linear` head: one linear layer trained by torch, as in the transfer-learning tutorial."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import ClassWeight, LinearModel


class LinearHead(LinearModel):
    """A linear layer with cross-entropy, trained by epochs.

    The defaults are the tutorial's (SGD with momentum 0.9, rate 0.001, 25 epochs, the best epoch on the validation
    rows kept) but for batches of 32, not 4, a rate that follows a cosine, standardised features, and a start at zero.

    Parameters
    ----------
    scaling : str
        Feature scaling, one of `SCALINGS`.
    optimizer : {'sgd', 'adamw', 'lbfgs'}
        L-BFGS takes all rows at once, up to 20 iterations an epoch.
    lr : float or None
        Learning rate; None is 0.001, for L-BFGS 1.
    momentum : float
        Of SGD.
    weight_decay : float
        Decoupled for AdamW, else the factor of half the squared weights; biases are free.
    label_smoothing : float
        Share of each target spread evenly over all classes, in [0, 1).
    schedule : {'step', 'cosine', 'constant'}
        `step` multiplies the rate by `gamma` every `step_size` epochs; `cosine` lowers it to 0.
    epochs, batch_size : int
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    resample : bool
        Draw training rows with replacement, each class equally often.
    seed : int
        Of the order of rows. Same seed, same weights.
    device : str
        A torch device.

    Attributes
    ----------
    coef_, intercept_ : (K, D) and (K,) float64 arrays
        For raw features, one row a class: an `nn.Linear`'s weight and bias.
    history_ : list of dict
        A line for each epoch, see `training.train`.
    best_epoch_ : int
        The epoch whose weights were kept.
    selection_ : {'val', 'last'}
        How it was chosen. Its own validation accuracy is optimistic after `val`.
    """

    streams = True

    def __init__(self, scaling: str = "standardize", optimizer: str = "sgd", lr: float | None = None,
                 momentum: float = 0.9, weight_decay: float = 0.0, label_smoothing: float = 0.0,
                 schedule: str = "cosine", step_size: int = 7, gamma: float = 0.1, epochs: int = 25,
                 batch_size: int = 32, class_weight: ClassWeight = None, resample: bool = False, seed: int = 0,
                 device: str = "cpu"):
        self.scaling = scaling
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.schedule = schedule
        self.step_size = step_size
        self.gamma = gamma
        self.epochs = epochs
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.resample = resample
        self.seed = seed
        self.device = device

    def _fit(self, Z: Any, codes: np.ndarray, validation: tuple[Any, np.ndarray] | None) -> None:
        from torch import nn

        from .training import Recipe, Rows, train

        recipe = Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})
        network = nn.Linear(Z.shape[1], len(self.classes_)).to(self.device)
        # the loss is convex: from zero, nothing of a random start is left in directions that the rows do not show
        nn.init.zeros_(network.weight)
        nn.init.zeros_(network.bias)
        held_out = None if validation is None else Rows.of(self._scaled(validation[0]), validation[1], self.device)
        self.history_, self.best_epoch_ = train(
            network, Rows.of(Z, codes, self.device, self.views_), held_out, self._class_weights(codes), recipe
        )
        self.selection_ = "last" if held_out is None else "val"
        self._keep(network.weight.detach().cpu().numpy(), network.bias.detach().cpu().numpy())
