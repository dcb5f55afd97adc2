"""All heads by name. Reading this table imports neither torch nor scikit-learn; using an entry does."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..registry import Registry
from .errors import HeadError, known

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
    """

    name: str
    description: str
    target: str
    needs_torch: bool = False

    @property
    def head_class(self) -> type[Head]:
        """The class; imports its module."""
        module, name = self.target.split(":")
        return getattr(import_module(f".{module}", __package__), name)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it understands, each with its default."""
        parameters = inspect.signature(self.head_class).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def build(self, **settings: Any) -> Head:
        """Return the unfitted head; settings as `make_head` takes them."""
        for name in settings:
            known(f"setting of head {self.name!r}", name, self.settings)
        return self.head_class(**settings)


HEADS: Registry[HeadEntry] = Registry("head")

for entry in (
    HeadEntry("linear", "one linear layer by SGD, AdamW or L-BFGS, best epoch kept", "linear:LinearHead", True),
    HeadEntry("logistic", "softmax regression solved to the optimum", "logistic:LogisticHead"),
    HeadEntry("linear-svm", "linear support vector machines, one against the rest", "svm_linear:LinearSVMHead"),
    HeadEntry("svm-rbf", "support vector machine with a Gaussian kernel", "svm_rbf:SVMRBFHead"),
    HeadEntry("knn", "votes of the nearest training images", "knn:KNNHead"),
    HeadEntry("ridge", "least squares, penalty chosen by leaving each image out", "ridge:RidgeHead"),
    HeadEntry("lda", "linear discriminant analysis with shrunk covariance", "gaussian:LDAHead"),
    HeadEntry("nearest-centroid", "the class whose mean is nearest", "gaussian:NearestCentroidHead"),
    HeadEntry("gaussian-nb", "Gaussian naive Bayes", "gaussian:GaussianNBHead"),
    HeadEntry("random-forest", "300 decision trees", "trees:RandomForestHead"),
    HeadEntry("hist-gradient-boosting", "gradient-boosted trees", "trees:HistGradientBoostingHead"),
    HeadEntry("mlp", "one hidden layer with dropout", "mlp:MLPHead", True),
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
