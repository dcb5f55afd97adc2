"""The heads that torch trains: `linear`, one layer as in the transfer-learning tutorial; `mlp`, with a hidden one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import HeadError
from .base import ClassWeight, Head, LinearModel
from .groups import Groups


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
    groups : sequence of (int, float), optional
        Of features of several layers, see `pipeline.heads.groups`.

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
                 device: str = "cpu", groups: Groups | None = None):
        self.groups = groups
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


class MLPHead(Head):
    """A network of one hidden layer (ReLU, dropout), trained by epochs as `LinearHead` is.

    Parameters
    ----------
    hidden : int
        Width of the hidden layer.
    dropout : float
        Share of hidden values dropped in training.
    scaling, optimizer, lr, momentum, weight_decay, label_smoothing, schedule, step_size, gamma, epochs, \
batch_size, class_weight, resample, seed, device
        As in `LinearHead`; AdamW with a cosine schedule by default. `seed` also makes the first weights.

    Attributes
    ----------
    hidden_coef_, hidden_intercept_ : (H, D) and (H,) float32 arrays
        The hidden layer, for scaled features.
    coef_, intercept_ : (K, H) and (K,) float32 arrays
        The last layer.
    history_, best_epoch_, selection_
        As in `LinearHead`.
    """

    streams = True

    def __init__(self, hidden: int = 256, dropout: float = 0.3, scaling: str = "standardize",
                 optimizer: str = "adamw", lr: float | None = None, momentum: float = 0.9,
                 weight_decay: float = 0.01, label_smoothing: float = 0.0, schedule: str = "cosine",
                 step_size: int = 7, gamma: float = 0.1, epochs: int = 30, batch_size: int = 64,
                 class_weight: ClassWeight = None, resample: bool = False, seed: int = 0, device: str = "cpu"):
        self.hidden = hidden
        self.dropout = dropout
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
        import torch
        from torch import nn

        from .training import Recipe, Rows, train

        if self.hidden < 1 or not 0 <= self.dropout < 1:
            raise HeadError(f"hidden is {self.hidden} and dropout {self.dropout}; at least 1, and in [0, 1).")
        recipe = Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})
        held_out = None if validation is None else Rows.of(self._scaled(validation[0]), validation[1], self.device)
        with torch.random.fork_rng():  # dropout draws from the global generator; leave the caller's as it was
            torch.manual_seed(self.seed)
            network = nn.Sequential(nn.Linear(Z.shape[1], self.hidden), nn.ReLU(), nn.Dropout(self.dropout),
                                    nn.Linear(self.hidden, len(self.classes_))).to(self.device)
            self.history_, self.best_epoch_ = train(
                network, Rows.of(Z, codes, self.device, self.views_), held_out, self._class_weights(codes), recipe
            )
        self.selection_ = "last" if held_out is None else "val"
        first, _, _, last = network
        self.hidden_coef_, self.hidden_intercept_ = (w.detach().cpu().numpy() for w in first.parameters())
        self.coef_, self.intercept_ = (w.detach().cpu().numpy() for w in last.parameters())

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        hidden = np.maximum(Z @ self.hidden_coef_.T.astype(Z.dtype) + self.hidden_intercept_, 0)
        return hidden @ self.coef_.T.astype(Z.dtype) + self.intercept_
