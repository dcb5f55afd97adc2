"""Honest probabilities, and sets of labels that hold the truth as often as asked."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..evaluation import evaluate
from .base import Head
from .errors import HeadError
from .scores import probabilities
from .sweep import cross_validation_folds
from .temperature import fit_temperature

FIGURES = ("log_loss", "brier", "ece")


def calibrate(head: Head, X: np.ndarray, y: np.ndarray, *, X_val: np.ndarray | None = None,
              y_val: np.ndarray | None = None, folds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Fit a head's temperature on rows that did not train it, and set it.

    Predicted labels stay the same; only how sure they are changes.

    Parameters
    ----------
    head : Head
        Fitted on `X`, `y`; its `temperature_` is changed.
    X, y : (N, D) array, (N,) int array
        Training rows: cloned heads are trained on folds of them, unless validation rows are given.
    X_val, y_val : arrays, optional
        Validation rows, to be used instead. Not those that chose the head's epoch or settings, if it can be helped.
    folds, seed : int
        Of the cross-validation.

    Returns
    -------
    dict
        `temperature` (the factor by which scores are now divided more), `selection` ('cv' or 'val'), `n`, and
        `before` and `after`: log loss, Brier score and calibration error on the rows used. `after` is slightly
        optimistic, by the one number that was fitted.
    """
    n_classes = int(max(y.max(), -1 if y_val is None else np.max(y_val))) + 1
    if X_val is None or y_val is None:
        found, labels, selection = out_of_fold_probabilities(head, X, y, n_classes, folds, seed), np.asarray(y), "cv"
    else:
        found, labels, selection = probabilities(head, X_val, n_classes), np.asarray(y_val), "val"
    usable = found[np.arange(len(labels)), labels] > 0  # a class that did not train has no score to scale
    if not usable.any():
        raise HeadError("No row is of a class that the head was trained on, so there is nothing to calibrate on.")
    scores = np.log(np.maximum(found, np.finfo(np.float64).tiny))
    factor = fit_temperature(scores[usable], labels[usable])
    head.temperature_ *= factor
    softened = found ** (1 / factor)
    softened /= softened.sum(axis=1, keepdims=True)
    return {"temperature": factor, "selection": selection, "n": len(labels),
            "before": _figures(labels, found), "after": _figures(labels, softened)}


def out_of_fold_probabilities(head: Head, X: np.ndarray, y: np.ndarray, n_classes: int, folds: int = 5,
                              seed: int = 0) -> np.ndarray:
    """Return (N, K) probabilities of each row by a clone of the head trained without the row's fold."""
    from sklearn.base import clone

    X, y = np.asarray(X), np.asarray(y)
    result = np.empty((len(y), n_classes))
    for train, test in cross_validation_folds(y, folds, seed):
        result[test] = probabilities(clone(head).fit(X[train], y[train]), X[test], n_classes)
    return result


def _figures(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    scores = evaluate(labels, found)
    return {name: scores[name] for name in FIGURES}


def conformal_threshold(found: np.ndarray, labels: np.ndarray, coverage: float = 0.9) -> float:
    """Return the probability from which a label belongs to the set of possible ones.

    Split conformal prediction: for new images of the same kind, sets hold the true label with at least this
    probability, whatever the head. Source: Sadinle, Lei and Wasserman, "Least ambiguous set-valued classifiers with
    bounded error levels", 2019.

    Parameters
    ----------
    found : (N, K) array
        Probabilities of rows that did not train the head.
    labels : (N,) int array
        Their true classes.
    coverage : float
        Between 0 and 1.

    Returns
    -------
    float
        0 where the rows are too few for the coverage: then every label is possible.
    """
    if not 0 < coverage < 1:
        raise HeadError(f"coverage is {coverage}; it must be above 0 and below 1.")
    own = np.sort(np.asarray(found)[np.arange(len(labels)), labels])
    below = int(np.floor((len(own) + 1) * (1 - coverage) + 1e-9))
    return float(own[below - 1]) if below >= 1 else 0.0


def prediction_sets(found: np.ndarray, threshold: float) -> np.ndarray:
    """Return the (N, K) bool sets of possible labels: those of `threshold` or more, and always the best one."""
    sets = np.asarray(found) >= threshold
    sets[np.arange(len(sets)), np.argmax(found, axis=1)] = True
    return sets
