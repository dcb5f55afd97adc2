"""From scores to probabilities, and what linear heads need to predict: numpy alone.

Importing scikit-learn takes longer than classifying a photo, so a linear head is loaded as a `LinearScorer` where
it is only to predict.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .errors import HeadError
from .scaling import CHUNK, Scaler, chunks


class Scorer(Protocol):
    """Whatever predicts: a fitted head, or a `LinearScorer`."""

    classes_: np.ndarray
    n_features_in_: int

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the (N, K) class probabilities of (N, D) features."""


class LinearScorer:
    """A fitted linear head that can predict, and be saved again, but not be trained.

    Parameters
    ----------
    name : str
        The head's name in `HEADS`.
    settings : dict
        Of the head.

    Attributes
    ----------
    classes_, n_features_in_, coef_, intercept_, scaler_, temperature_
        As those of `LinearModel`; set by loading, `set_threshold_` and `familiarity_` likewise.
    """

    classes_: np.ndarray
    n_features_in_: int
    coef_: np.ndarray
    intercept_: np.ndarray
    scaler_: Scaler
    temperature_: float

    def __init__(self, name: str, settings: dict[str, Any]):
        self.name = name
        self.settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings, as scikit-learn's estimators do."""
        return dict(self.settings)

    def scores(self, X: Any) -> np.ndarray:
        """Return the (N, K) float64 scores of (N, D) features, before temperature and softmax."""
        X = np.asarray(X)
        X = X if X.dtype == np.float64 else X.astype(np.float32, copy=False)
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise HeadError(f"X has shape {X.shape}, but the head knows rows of {self.n_features_in_} features.")
        if not np.isfinite(X).all():
            raise HeadError("X contains NaN or infinity.")
        parts = [linear_scores(rows, self.scaler_, self.coef_, self.intercept_) for rows in chunks(X, CHUNK)]
        return np.concatenate(parts).astype(np.float64)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the (N, K) float64 class probabilities of (N, D) features; columns follow `classes_`."""
        return softmax(self.scores(X) / self.temperature_)

    def predict(self, X: Any) -> np.ndarray:
        """Return the (N,) most probable labels of (N, D) features."""
        return self.classes_[self.scores(X).argmax(axis=1)]


def linear_scores(X: np.ndarray, scaler: Scaler, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Return the (N, K) scores of raw (N, D) features; `coef` (K, D) has an affine scaling folded in."""
    if scaler.kind == "l2":
        X = scaler(X)
    return X @ coef.T.astype(X.dtype) + intercept


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return exp(scores), each row divided by its sum."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def probabilities(head: Scorer, X: Any, n_classes: int) -> np.ndarray:
    """Return a head's probabilities with one column for every class id, also for those it never saw.

    Parameters
    ----------
    head : Scorer
        Fitted on integer class ids.
    X : (N, D) array, or (N, V, D) of V views of each image
        Probabilities are averaged over views.
    n_classes : int
        K, the number of classes of the data set.

    Returns
    -------
    (N, K) float64 array
    """
    if X.ndim == 3:
        return np.mean([probabilities(head, X[:, view], n_classes) for view in range(X.shape[1])], axis=0)
    ids = np.asarray(head.classes_)
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= n_classes:
        raise HeadError(f"The head knows the labels {ids.tolist()[:8]}, which are no class ids below {n_classes}.")
    result = np.zeros((len(X), n_classes))
    if len(X):
        result[:, ids] = head.predict_proba(X)
    return result


def prediction_sets(found: np.ndarray, threshold: float) -> np.ndarray:
    """Return the (N, K) bool sets of possible labels: those of `threshold` or more, and always the best one."""
    sets = np.asarray(found) >= threshold
    sets[np.arange(len(sets)), np.argmax(found, axis=1)] = True
    return sets


def plain(X: np.ndarray) -> np.ndarray:
    """Return the plain view (N, D) of (N, V, D) features; (N, D) are it themselves."""
    return X[:, 0] if X.ndim == 3 else X
