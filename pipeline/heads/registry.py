"""All heads by name. Reading this table imports neither torch nor scikit-learn; using an entry does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..core.errors import HeadError, known
from ..core.registry import Registry

if TYPE_CHECKING:
    from .base import Head


@dataclass(frozen=True)
class HeadEntry:
    """One head.

    Attributes
    ----------
    name : str
        As on the command line.
    description : str
        One line.
    target : str
        ``module:class`` within this package.
    needs_torch : bool
        Whether its training imports torch.
    grid : mapping
        What a sweep tries, simplest values first; empty where nothing is worth trying.
    """

    name: str
    description: str
    target: str
    needs_torch: bool = False
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def head_class(self) -> type[Head]:
        """The class; imports its module."""
        module, name = self.target.split(":")
        return getattr(import_module(f".{module}", __package__), name)

    @property
    def streams(self) -> bool:
        """Whether its training takes rows that do not fit into memory; imports its module."""
        return self.head_class.streams

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it understands, each with its default."""
        parameters = inspect.signature(self.head_class).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    @property
    def asked(self) -> dict[str, Any]:
        """What makes a run another one besides its head's name and settings."""
        return {}

    def build(self, **settings: Any) -> Head:
        """Return the unfitted head; settings as `make_head` takes them."""
        for name in settings:
            known(f"setting of head {self.name!r}", name, self.settings)
        return self.head_class(**settings)


HEADS: Registry[HeadEntry] = Registry("head")


def _log_steps(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return numbers from 10^low to 10^high, evenly spaced in their logarithm."""
    return tuple(10 ** (low + (high - low) * step / (count - 1)) for step in range(count))


for entry in (
    HeadEntry("linear", "one linear layer by SGD, AdamW or L-BFGS, best epoch kept", "torch_heads:LinearHead", True,
              {"weight_decay": (0.01, 0.0), "lr": _log_steps(-4, -1, 7)}),
    HeadEntry("logistic", "softmax regression solved to the optimum", "logistic:LogisticHead",
              grid={"scaling": ("standardize", "none"), "C": _log_steps(-6, 5, 45)}),
    HeadEntry("linear-svm", "linear support vector machines, one against the rest", "logistic:LinearSVMHead",
              grid={"scaling": ("standardize", "none"), "C": _log_steps(-6, 0, 13)}),
    HeadEntry("svm-rbf", "support vector machine with a Gaussian kernel", "svm_rbf:SVMRBFHead",
              grid={"scaling": ("standardize", "none"), "gamma_factor": (0.3, 1.0, 3.0), "C": (1.0, 10.0, 100.0)}),
    HeadEntry("knn", "votes of the nearest training images", "knn:KNNHead",
              grid={"scaling": ("standardize", "none"), "k": (200, 100, 50, 20, 10, 5, 3, 1), "T": (0.2, 0.07, 0.03)}),
    HeadEntry("ridge", "least squares, penalty chosen by leaving each image out", "ridge:RidgeHead",
              grid={"scaling": ("standardize", "none")}),
    HeadEntry("lda", "linear discriminant analysis with shrunk covariance", "gaussian:LDAHead",
              grid={"shrinkage": ("auto", 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01)}),
    HeadEntry("nearest-centroid", "the class whose mean is nearest", "gaussian:NearestCentroidHead",
              grid={"scaling": ("standardize", "none", "l2", "pca-whiten")}),
    HeadEntry("gaussian-nb", "Gaussian naive Bayes", "gaussian:GaussianNBHead",
              grid={"smoothing": _log_steps(1, -9, 11)}),
    HeadEntry("random-forest", "300 decision trees", "trees:RandomForestHead",
              grid={"min_samples_leaf": (5, 2, 1)}),
    HeadEntry("hist-gradient-boosting", "gradient-boosted trees", "trees:HistGradientBoostingHead",
              grid={"max_leaf_nodes": (4, 15), "learning_rate": (0.1, 0.3)}),
    HeadEntry("mlp", "one hidden layer with dropout", "torch_heads:MLPHead", True,
              {"hidden": (64, 256), "lr": (1e-4, 3e-4, 1e-3)}),
):
    HEADS[entry.name] = entry


def make_head(name: str, *, scaling: str | None = None, class_weight: Any = None, seed: int = 0,
              **settings: Any) -> Head:
    """Return an unfitted head.

    Parameters
    ----------
    name : str
        A name in `HEADS`.
    scaling : str or None
        One of `SCALINGS`; None is the head's own default.
    class_weight : 'balanced', dict or None
        Refused by heads that have no use for it.
    seed : int
        Ignored by heads in which nothing is random.
    **settings
        The head's own settings.

    Raises
    ------
    UnknownNameError
        For an unknown head.
    HeadError
        For a setting that the head does not understand; the message lists those it does.
    """
    entry = HEADS[name]
    if scaling is not None:
        settings["scaling"] = scaling
    if class_weight is not None:
        if "class_weight" not in entry.settings:
            raise HeadError(f"Head {name!r} has no class weights; leave class_weight out, or take another head.")
        settings["class_weight"] = class_weight
    if "seed" in entry.settings:
        settings["seed"] = seed
    return entry.build(**settings)
