"""Honest probabilities, and sets of labels that hold the truth as often as asked."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import HeadError
from ..evaluation.metrics import evaluate
from .base import Head
from .scores import fit_temperature, plain, probabilities
from .sweep import cross_validation_folds

MOST_WRONG = 3.0  # times the usual row's lead of its likeliest class
FIGURES = ("log_loss", "brier", "ece")


def calibrate(head: Head, X: np.ndarray, y: np.ndarray, *, X_val: np.ndarray | None = None,
              y_val: np.ndarray | None = None, folds: int = 5, seed: int = 0,
              coverage: float | None = None) -> dict[str, Any]:
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
    coverage : float, optional
        Also set the head's `set_threshold_`, from which a label belongs to a set of possible ones that holds the
        truth this often; see `conformal_threshold`.

    Returns
    -------
    dict
        `temperature` (the factor by which scores are now divided more; 1 where that makes the log loss of these rows no
        less, and nothing changes), `selection` ('cv' or 'val'), `n`, and `before` and `after`: log loss, Brier score
        and calibration error on the rows used. `after` is slightly optimistic, by the one number that was fitted. With
        a coverage, that and `threshold` too.

    Raises
    ------
    HeadError
        If no row is of a class that the head knows, or rows are too few for cross-validation.
    """
    n_classes = int(max(y.max(), -1 if y_val is None else np.max(y_val))) + 1
    if X_val is None or y_val is None:
        found, labels, selection = out_of_fold_probabilities(head, X, y, n_classes, folds, seed), np.asarray(y), "cv"
    else:
        found, labels, selection = probabilities(head, X_val, n_classes), np.asarray(y_val), "val"
    usable = found[np.arange(len(labels)), labels] > 0  # a class that did not train has no score to scale
    if not usable.any():
        raise HeadError("No row is of a class that the head was trained on, so there is nothing to calibrate on.")
    scores = np.log(np.maximum(found, np.finfo(np.float64).tiny))[usable]
    factor = fit_temperature(_tamed(scores, labels[usable]), labels[usable])
    before, softened = figures(labels, found), at_temperature(found, factor)
    if not (after := figures(labels, softened))["log_loss"] < before["log_loss"]:
        factor, softened, after = 1.0, found, before
    head.temperature_ *= factor
    report = {"temperature": factor, "selection": selection, "n": len(labels), "before": before, "after": after}
    if coverage is not None:
        head.set_threshold_ = conformal_threshold(softened, labels, coverage)
        report |= {"coverage": coverage, "threshold": head.set_threshold_}
    return report


def _tamed(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return (N, K) scores in which no row is far more wrong than most rows are sure.

    Where a class trains on an image or two, columns that hardly vary within a fold are scaled up so much that a
    left-out image gets a probability of e^-400 where others have e^-3, and that row alone would flatten all others.
    """
    ranked = np.sort(scores, axis=1)
    most = MOST_WRONG * float(np.median(ranked[:, -1] - ranked[:, -2]))
    wrong = ranked[:, -1] - scores[np.arange(len(codes)), codes]
    return scores * np.where(wrong > most, most / np.maximum(wrong, most or 1.0), 1.0)[:, None]


def at_temperature(found: np.ndarray, factor: float) -> np.ndarray:
    """Return what (N, K) probabilities would be, had their scores been divided by `factor` more."""
    # the largest of a row is 1 before the power, so that no row comes out as zeros
    changed = (found / found.max(axis=1, keepdims=True)) ** (1 / factor)
    return changed / changed.sum(axis=1, keepdims=True)


def out_of_fold_probabilities(head: Head, X: np.ndarray, y: np.ndarray, n_classes: int, folds: int = 5,
                              seed: int = 0) -> np.ndarray:
    """Return (N, K) probabilities of each row by a clone of the head trained without the row's fold."""
    from sklearn.base import clone

    X, y = np.asarray(X), np.asarray(y)
    result = np.empty((len(y), n_classes))
    for train, test in cross_validation_folds(y, folds, seed):
        result[test] = probabilities(clone(head).fit(X[train], y[train]), plain(X[test]), n_classes)
    return result


def figures(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Return what tells how honest probabilities are: log loss, Brier score and calibration error."""
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
