"""Any scikit-learn classifier or pipeline as a head: trained, tuned and scored as all others are.

It is kept with skops, which loads nothing but types that it knows to run no code; what holds others is refused before
it is trained. In this process it has a name in `HEADS`, like any head.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np

from ..core.errors import HeadError
from .base import Head
from .folds import FOLDS, fold_numbers
from .registry import HEADS, HeadEntry
from .scores import fit_temperature

SKOPS = "Own estimators are kept with skops: pip install 'image-feature-pipeline[skops]'."
# Parts of scikit-learn's estimators that skops does not list, and that are made of plain attributes alone. Its compiled
# trees are none of them: arrays of a forged file would be followed beyond their ends.
TRUSTED = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
]
LEAST = 1e-12  # of a probability, so that its logarithm is finite
DEEPEST = 20  # estimators within lists within estimators


class EstimatorHead(Head):
    """A scikit-learn classifier, or a pipeline that ends in one.

    Parameters
    ----------
    estimator : classifier
        Gives probabilities, or a decision function: a temperature is then fitted on images left out in turn.
    seed : int
        Of every ``random_state`` in it that is None.

    Attributes
    ----------
    estimator_ : classifier
        The fitted copy; its labels are positions in `classes_`.
    """

    def __init__(self, estimator: Any = None, seed: int = 0):
        self.estimator = estimator
        self.seed = seed

    scaling = "none"

    @property
    def random(self) -> bool:
        """Whether something in it is drawn, and nobody fixed what."""
        return bool(_open_seeds(self.estimator))

    def unfitted(self, **settings: Any) -> Self:
        """Return an unfitted copy with some settings changed; those of the estimator by its own names."""
        from sklearn.base import clone

        seed = settings.pop("seed", self.seed)
        return type(self)(clone(self.estimator).set_params(**settings), seed)

    def set_params(self, **settings: Any) -> Self:
        """Change settings, the estimator's by its own names; return itself."""
        self.seed = settings.pop("seed", self.seed)
        self.estimator.set_params(**settings)
        return self

    @property
    def parameters(self) -> int:
        """How many floating-point numbers the fitted estimator holds."""
        return sum(array.size for array in _arrays(self.estimator_))

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None) -> None:
        self.estimator_ = self._fitted(Z, codes)
        if hasattr(self.estimator_, "predict_proba"):
            return
        numbers = np.repeat(fold_numbers(codes[:: self.views_], FOLDS, self.seed), self.views_)
        left_out = np.empty((len(codes), len(self.classes_)))
        for fold in range(FOLDS):
            train, test = numbers != fold, numbers == fold
            if test.any():
                left_out[test] = _decision(self._fitted(Z[train], codes[train]), Z[test], len(self.classes_))
        if (used := numbers >= 0).any():
            self.temperature_ = fit_temperature(left_out[used], codes[used])

    def _fitted(self, Z: np.ndarray, codes: np.ndarray) -> Any:
        from sklearn.base import clone

        made = clone(self.estimator).set_params(**dict.fromkeys(_open_seeds(self.estimator), self.seed))
        try:
            return made.fit(Z, codes)
        except (ValueError, TypeError) as error:
            raise HeadError(f"{type(made).__name__} could not be fitted: {error}") from error

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        if hasattr(self.estimator_, "predict_proba"):
            return np.log(np.maximum(self.estimator_.predict_proba(Z), LEAST))
        return _decision(self.estimator_, Z, len(self.classes_))


def _decision(estimator: Any, Z: np.ndarray, classes: int) -> np.ndarray:
    """Return a decision function's values, (N, K); of a class that its training lacked, the least of each row."""
    found, known = np.asarray(estimator.decision_function(Z), np.float64), np.asarray(estimator.classes_)
    if found.ndim == 1:
        found = np.stack([-found, found], axis=1)  # for the second of two classes
    if found.shape[1] != len(known):
        raise HeadError(f"{type(estimator).__name__} gives {found.shape[1]} decision values for {len(known)} classes; "
                        "decision_function_shape='ovr' gives one each.")
    values = np.repeat(found.min(axis=1, keepdims=True), classes, axis=1)
    values[:, known] = found
    return values


def _open_seeds(estimator: Any) -> list[str]:
    return [name for name, value in estimator.get_params().items()
            if name.split("__")[-1] == "random_state" and value is None]  # fmt: skip


def _arrays(value: Any, depth: int = 0) -> Iterator[np.ndarray]:
    """Yield the arrays of floating-point numbers among fitted attributes."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        yield value
    elif depth < DEEPEST and isinstance(value, (list, tuple)):
        for one in value:
            yield from _arrays(one, depth + 1)
    elif depth < DEEPEST and type(value).__module__.startswith("sklearn.") and hasattr(value, "__dict__"):
        is_part = not hasattr(value, "get_params")  # of an estimator, and all that it holds was learned
        fitted = [own for name, own in vars(value).items() if is_part or name.endswith("_") or name == "steps"]
        yield from _arrays(fitted, depth + 1)


@dataclass(frozen=True)
class EstimatorEntry(HeadEntry):
    """The entry of an estimator that a program made known."""

    estimator: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """The estimator's settings by its own names (``svc__C``), and the seed of what is random in it."""
        own = self.estimator.get_params()
        return {**own, **({"seed": 0} if _open_seeds(self.estimator) else {})}

    @property
    def asked(self) -> dict[str, Any]:
        """What makes a run of it another one: every setting."""
        return {"estimator": " ".join(repr(self.estimator).split())}

    def build(self, **settings: Any) -> Head:
        """Return the unfitted head."""
        for name in settings:
            if name not in self.settings:
                raise HeadError(f"{self.name} has no setting {name!r}. It has {', '.join(sorted(self.settings))}.")
        return EstimatorHead(self.estimator).unfitted(**settings)


def registered(head: Any, grid: Mapping[str, Sequence[Any]] | None = None) -> str:
    """Return the name of a head in `HEADS`; an estimator is put there under that of its class or steps.

    Raises
    ------
    HeadError
        If it is no classifier, or could not be saved.
    """
    if isinstance(head, str):
        return head
    if not (hasattr(head, "fit") and hasattr(head, "get_params")):
        raise HeadError(f"A head is a name ({', '.join(HEADS)}) or a scikit-learn classifier, not "
                        f"{type(head).__name__}.")
    from sklearn.base import clone, is_classifier

    if not is_classifier(head):
        raise HeadError(f"{type(head).__name__} is no classifier.")
    if not (hasattr(head, "predict_proba") or hasattr(head, "decision_function")):
        raise HeadError(f"{type(head).__name__} gives neither probabilities nor a decision function.")
    packed(head)  # so that what cannot be saved is refused before it is trained
    steps = [step for _, step in getattr(head, "steps", [("", head)])]
    name = "-".join(type(step).__name__ for step in steps)
    HEADS[name] = EstimatorEntry(name, f"{name}, given by a program", "estimator:EstimatorHead", False,
                                 {key: tuple(values) for key, values in (grid or {}).items()}, clone(head))
    return name


def packed(estimator: Any) -> bytes:
    """Return an estimator as skops keeps it.

    Raises
    ------
    HeadError
        If skops is missing, or the estimator holds something that loading could not trust; that is named.
    """
    try:
        from skops.io import dumps, get_untrusted_types
    except ImportError as error:
        raise HeadError(SKOPS) from error
    try:
        content = dumps(estimator)
        strange = sorted(set(get_untrusted_types(data=content)) - set(TRUSTED))
    except Exception as error:  # skops refuses what it does not know with many kinds of errors
        raise HeadError(f"{type(estimator).__name__} cannot be saved: {error}") from error
    if strange:
        has_trees = any("tree" in name.lower() for name in strange)
        instead = " The heads random-forest and hist-gradient-boosting can be." if has_trees else ""
        raise HeadError(f"{type(estimator).__name__} cannot be saved: it holds {', '.join(strange)}, which no file is "
                        f"trusted with.{instead}")
    return content


def unpacked(content: bytes) -> Any:
    """Return the estimator that `packed` made bytes of.

    Raises
    ------
    HeadError
        If skops is missing, or the content is damaged, unpacks to more than its size, or holds what is not trusted.
    """
    try:
        from skops.io import loads
    except ImportError as error:
        raise HeadError(SKOPS) from error
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise HeadError("the estimator is compressed, which this program never does")
        return loads(content, trusted=TRUSTED)
    except HeadError:
        raise
    except Exception as error:
        raise HeadError(f"the estimator cannot be loaded: {type(error).__name__}: {error}") from error
