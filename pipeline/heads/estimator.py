"""What makes a head a scikit-learn classifier, without importing scikit-learn.

scikit-learn asks for methods, not for a base class: settings by name, tags, a score. Its own base class takes longer
to import (1.0 to 1.4 s, most of it scipy.stats) than solving a head on ten thousand rows takes, so it is imported
where something needs it: for tags, unusual input, folds. Its own checks (`parametrize_with_checks`) hold all the same.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np

from .errors import HeadError


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
