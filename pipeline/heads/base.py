"""What all heads share: a scikit-learn classifier over features, its scaling, and its probabilities.

scikit-learn asks for methods, not for a base class: settings by name, tags, a score. Its own base class takes longer
to import (1.0 to 1.4 s, most of it scipy.stats) than solving a head on ten thousand rows takes, so it is imported
where something needs it: for tags, unusual input, folds. Its own checks (`parametrize_with_checks`) hold all the
same.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..core.errors import HeadError
from .folds import Fold
from .rows import StreamedRows, one_thread
from .scaling import CHUNK, Scaler, chunks, fit_scaler
from .scores import linear_scores, softmax

if TYPE_CHECKING:
    from .out_of_distribution import OutOfDistribution

OF_ONE_FIT = {"set_threshold_", "familiarity_", "choice_", "selection_", "converged_"}  # that not every fit sets
ClassWeight = str | dict[Any, float] | None


class Classifier:
    """A classifier as scikit-learn knows them; every parameter of `__init__` is an attribute of that name."""

    _estimator_type = "classifier"
    classes_: np.ndarray
    n_features_in_: int

    def predict(self, X: Any) -> np.ndarray:
        """Return the (N,) most probable labels of (N, D) features."""
        raise NotImplementedError

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **settings: Any) -> Self:
        """Change settings; return itself."""
        for name, value in settings.items():
            if name not in self._defaults():
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. Valid: {list(self._defaults())}.")
            setattr(self, name, value)
        return self

    def unfitted(self, **settings: Any) -> Self:
        """Return an unfitted copy with some settings changed."""
        return type(self)(**{**self.get_params(), **settings})

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of (N, D) features whose label is predicted right."""
        return float(np.average(self.predict(X) == np.asarray(y), weights=sample_weight))

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={getattr(self, name)!r}" for name, default in self._defaults().items()
                            if repr(getattr(self, name)) != repr(default))
        return f"{type(self).__name__}({changed})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(estimator_type="classifier", target_tags=TargetTags(required=True), transformer_tags=None,
                    regressor_tags=None, classifier_tags=ClassifierTags(), input_tags=InputTags())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Return the parameters of `__init__` with their defaults, sorted by name."""
        parameters = inspect.signature(cls).parameters
        return {name: parameters[name].default for name in sorted(parameters)}

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"This {type(self).__name__} is not fitted yet: call `fit` first.")

    def _checked(self, X: Any, y: Any = None, *, reset: bool) -> Any:
        """Return the features as float32 or float64, after scikit-learn's checks; with `y`, both."""
        if getattr(X, "dtype", None) == np.float16:
            X = np.asarray(X, np.float32)
        if self._is_sound(X, y, reset):
            self.n_features_in_ = X.shape[1]
            return X if y is None else (X, y)
        from sklearn.utils.validation import validate_data

        given = {"X": X} if y is None else {"X": X, "y": y}
        try:
            return validate_data(self, **given, reset=reset, dtype=[np.float64, np.float32])
        except ValueError as error:
            raise HeadError(f"{type(self).__name__}: {error}") from error

    def _is_sound(self, X: Any, y: Any, reset: bool) -> bool:
        """Tell whether plain arrays are as they should be; whatever they are not, scikit-learn says it better."""
        return (
            type(X) is np.ndarray and X.dtype in (np.float32, np.float64) and X.ndim == 2 and X.size > 0
            and (reset or X.shape[1] == self.n_features_in_)
            and not hasattr(self, "feature_names_in_")
            and (y is None or (type(y) is np.ndarray and y.dtype.kind in "iuU" and y.shape == X.shape[:1]))
            and bool(np.isfinite(X.sum(dtype=np.float64)) or np.isfinite(X).all())
        )  # fmt: skip


class Head(Classifier):
    """Base of all heads: checks input, scales features, turns scores into probabilities.

    A head implements `_fit`, which learns from scaled features, and `_scores`, which returns a score for each
    row and class. Probabilities are ``softmax(scores / temperature_)``; a head whose scores are log probabilities
    leaves `temperature_` at 1.

    Attributes
    ----------
    classes_ : (K,) array
        The labels seen in training, sorted; columns of `predict_proba` follow it.
    n_features_in_ : int
        D, the number of features of a row.
    scaler_ : Scaler
        The fitted feature scaling.
    temperature_ : float
        What scores are divided by.
    set_threshold_ : float
        Labels of this probability or more are possible, see `calibrate`. Only of a calibrated head.
    familiarity_ : OutOfDistribution
        What its training rows look like. Likewise.
    selection_ : {'val', 'cv', 'last'}
        How its epoch, or a setting, was chosen in training. Only of a head that chose.
    choice_ : dict
        The `settings` that training chose among how many `candidates`, by which `metric` and `rule` ('best', or
        'strongest' of those near the best). Likewise.
    converged_ : bool
        Whether what training looks for was found; otherwise the head's figures mean nothing. Only of a head that may
        fail to.
    views_ : int
        V, the views of each training image; the V rows of an image are neighbours in what `_fit` is given.
    """

    scaling: str
    scaler_: Scaler
    set_threshold_: float
    familiarity_: OutOfDistribution
    streams = False  # whether `fit` takes StreamedRows
    squares = False  # whether `fit` sums products of features into (D, D) matrices, however few the rows at a time
    threads = False  # whether fits run side by side in threads: quickly done, and nearly all in numpy

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Head:
        """Learn from the training rows.

        Parameters
        ----------
        X : (N, D) array or StreamedRows, or (N, V, D) array of V views of each image
            Features; float16 and float32 are computed in float32. Heads with `streams` take rows that do not fit
            into memory, and learn the same from them. Heads trained by epochs take one view of each image an epoch,
            drawn anew; others take all views as rows. What is left out to measure something is left out with all of
            its views.
        y : (N,) array
            Labels: integers or strings.
        X_val, y_val : (M, D) array or StreamedRows, (M,) array, optional
            Validation rows. Only heads trained by epochs use them, to keep the best epoch.

        Returns
        -------
        Head
            Itself.

        Raises
        ------
        HeadError
            If a feature is not finite, shapes differ, there is one class only, or a setting is unknown.
        """
        with warnings.catch_warnings(), one_thread(X):
            # few-shot training has few rows a class on purpose
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            X, codes = self._checked_training(X, y)
            validation = self._checked_validation(X_val, y_val)
            for name in OF_ONE_FIT & vars(self).keys():  # of an earlier fit
                delattr(self, name)
            self.scaler_ = self._fitted_scaler(X)
            self.temperature_ = 1.0
            self._fit(self._scaled(X), codes, validation)
        return self

    def paths(self, settings: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Return which of the settings `fit_path` shares work between, as groups of neighbouring positions."""
        return [[position] for position in range(len(settings))]

    def fit_path(self, X: Any, y: Any, settings: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
        """Yield this head fitted with each of the settings in turn; `converged_` tells whether it could be.

        A head that can shares work between them; this one starts anew each time.

        Parameters
        ----------
        X, y
            Training rows, as for `fit`.
        settings : sequence of mappings
            What to change, for each fit.
        """
        for one in settings:
            yield self.unfitted(**one).fit(X, y)

    def fits_folds_together(self, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold],
                            settings: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether `fit_folds` shares the work of all folds of a cross-validation; only some heads can."""
        return False

    def fit_folds(
        self, X: np.ndarray, y: np.ndarray, folds: Sequence[Fold],
        settings: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[int]],
    ) -> Iterator[tuple[int, int, Head]]:  # fmt: skip
        """Yield (fold, position, head): this head fitted on a fold's training rows with one of the settings.

        Parameters
        ----------
        X, y
            All rows, as for `fit`.
        folds : sequence of (train, test) index arrays
        settings : sequence of mappings
            One of the groups of `paths`.
        wanted : sequence of sequence of int
            Positions in `settings`, for each fold.
        """
        raise NotImplementedError

    @property
    def random(self) -> bool:
        """Whether another seed gives another head."""
        return "seed" in self.get_params(deep=False)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the (N, K) float64 class probabilities of (N, D) features; columns follow `classes_`."""
        return softmax(self.scores(X) / self.temperature_)

    def predict(self, X: Any) -> np.ndarray:
        """Return the (N,) most probable labels of (N, D) features."""
        best = self.scores(X).argmax(axis=1)
        return self.classes_[best]

    def scores(self, X: Any) -> np.ndarray:
        """Return the (N, K) float64 scores of (N, D) features, before temperature and softmax."""
        self._require_fitted()
        X = self._checked(X, reset=False)
        return np.concatenate([self._raw_scores(rows) for rows in chunks(X, CHUNK)]).astype(np.float64)

    def _fit(self, Z: Any, codes: np.ndarray, validation: tuple[np.ndarray, np.ndarray] | None) -> None:
        raise NotImplementedError

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _raw_scores(self, X: np.ndarray) -> np.ndarray:
        return self._scores(self.scaler_(X))

    def _fitted_scaler(self, X: Any) -> Scaler:
        """Learn the scaling; of features of several layers, each layer's columns apart."""
        if (own := self._factors(X.shape[1])) is None:
            return fit_scaler(self.scaling, X)
        return fit_scaler(self.scaling, self._multiplied(X, own)).after(own)

    def _factors(self, width: int) -> np.ndarray | None:
        """Return the (D,) factor of each column, where the setting `groups` gives some."""
        from .groups import factors

        groups = getattr(self, "groups", None)
        return None if groups is None else factors(groups, width)

    @staticmethod
    def _multiplied(X: Any, own: np.ndarray) -> Any:
        own = own.astype(np.float32 if isinstance(X, StreamedRows) else X.dtype)
        return X.map(lambda rows: rows * own) if isinstance(X, StreamedRows) else X * own

    def _scaled(self, X: Any) -> Any:
        return X.map(self.scaler_) if isinstance(X, StreamedRows) else self.scaler_(X)

    def _checked_training(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        if y is None:
            raise HeadError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        self.views_ = 1
        if isinstance(X, StreamedRows):
            y, self.n_features_in_ = self._checked_streamed(X, y), X.shape[1]
        else:
            if getattr(X, "ndim", 2) == 3 and np.shape(y) == X.shape[:1]:
                self.views_ = X.shape[1]
                X, y = np.reshape(X, (-1, X.shape[2])), np.repeat(y, self.views_)
            X, y = self._checked(X, y, reset=True)
        if y.dtype.kind not in "iuU":
            from sklearn.utils.multiclass import check_classification_targets

            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise HeadError(f"{type(self).__name__} needs two classes or more; y holds one class: {self.classes_}.")
        return X, codes

    def _checked_streamed(self, X: StreamedRows, y: Any) -> np.ndarray:
        """Return the labels of rows that are read later; whether these are numbers shows then."""
        if not self.streams:
            raise HeadError(f"{type(self).__name__} needs all rows in memory; these are streamed.")
        y = np.asarray(y)
        if y.shape != (len(X),):
            raise HeadError(f"y has shape {y.shape}, but X has {len(X)} rows.")
        return y

    def _checked_validation(self, X: Any, y: Any) -> tuple[Any, np.ndarray] | None:
        """Return raw validation rows and their class codes, -1 for a label unseen in training."""
        if (X is None) != (y is None):
            raise HeadError("X_val and y_val belong together: pass both or none.")
        if X is None or not len(X):
            return None
        X = X if isinstance(X, StreamedRows) else self._checked(X, reset=False)
        y = np.asarray(y)
        if y.shape != (len(X),):
            raise HeadError(f"y_val has shape {y.shape}, but X_val has {len(X)} rows.")
        codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        return X, np.where(self.classes_[codes] == y, codes, -1)

    def _class_weights(self, codes: np.ndarray) -> np.ndarray:
        """Return the (K,) weight of each class that the setting `class_weight` asks for."""
        weight: ClassWeight = getattr(self, "class_weight", None)
        if weight is not None and weight != "balanced" and not isinstance(weight, dict):
            raise HeadError(f"class_weight is {weight!r}; known: 'balanced', a dict from label to weight, or None.")
        if weight is None:
            return np.ones(len(self.classes_))
        from sklearn.utils.class_weight import compute_class_weight

        return compute_class_weight(weight, classes=self.classes_, y=self.classes_[codes])

    def _code_weights(self, codes: np.ndarray) -> dict[int, float] | None:
        """Return the class weights for a scikit-learn model that is fitted on class codes."""
        return None if getattr(self, "class_weight", None) is None else dict(enumerate(self._class_weights(codes)))


class LinearModel(Head):
    """A head whose scores are linear in the features.

    Attributes
    ----------
    coef_ : (K, D) float64 array
        Weights for raw features: an affine scaling is folded in, so that ``X @ coef_.T + intercept_`` are the
        scores (with scaling ``"l2"``, of rows divided by their length).
    intercept_ : (K,) float64 array
    """

    coef_: np.ndarray
    intercept_: np.ndarray

    def _keep(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_, self.intercept_ = self.scaler_.fold(coef, intercept)

    def _raw_scores(self, X: np.ndarray) -> np.ndarray:
        return linear_scores(X, self.scaler_, self.coef_, self.intercept_)
