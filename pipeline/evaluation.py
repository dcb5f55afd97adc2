"""How good predictions are: one function from labels and probabilities to the figures of every run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .errors import PipelineError

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


class EvaluationError(PipelineError, ValueError):
    """Labels and probabilities that do not belong together."""


def evaluate(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Score predicted probabilities against the true labels.

    Parameters
    ----------
    labels : (N,) int array
        True class ids, 0 to K - 1. Classes may be absent.
    probabilities : (N, K) array
        A row of class probabilities for each label, columns by class id. The first largest one is the prediction.

    Returns
    -------
    dict
        Plain numbers, fit for JSON: `n`, `accuracy`, `accuracy_ci95` ([low, high], Wilson's interval),
        `balanced_accuracy` (mean recall of the classes that occur), `macro_f1` (over the classes that occur
        or are predicted), `log_loss` (nats).

    Raises
    ------
    EvaluationError
        If shapes do not match, there is no row, a label is out of range, or a probability is not a number.
    """
    labels, probabilities = _checked(labels, probabilities)
    predictions = probabilities.argmax(axis=1)
    counts = confusion_matrix(labels, predictions, probabilities.shape[1])
    n, correct = len(labels), int(counts.trace())
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson_interval(correct, n)),
        "balanced_accuracy": _balanced_accuracy(counts),
        "macro_f1": _macro_f1(counts),
        "log_loss": log_loss(labels, probabilities),
    }


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the (K, K) counts of true class (row) and predicted class (column)."""
    pairs = np.asarray(labels) * n_classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def wilson_interval(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; unlike the textbook one it holds near 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # without rounding errors the ends of 0/n and n/n are 0 and 1 exactly
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log probability of the true class, in nats.

    A probability of 0 counts as the smallest step of its float type, so that one row cannot make it infinite.
    """
    own = np.asarray(probabilities)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(own.dtype).eps), dtype=np.float64).mean())


def _balanced_accuracy(counts: np.ndarray) -> float:
    sizes = counts.sum(axis=1)
    occurs = sizes > 0
    return float((counts.diagonal()[occurs] / sizes[occurs]).mean())


def _macro_f1(counts: np.ndarray) -> float:
    touched = counts.sum(axis=0) + counts.sum(axis=1)
    seen = touched > 0
    return float((2 * counts.diagonal()[seen] / touched[seen]).mean())


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise EvaluationError(
            f"Labels of shape {labels.shape} and probabilities of shape {probabilities.shape} do not belong "
            "together: (N,) and (N, K) are needed."
        )
    if not len(labels):
        raise EvaluationError("There is no labelled row to evaluate.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise EvaluationError(f"Labels must be class ids (integers), not {labels.dtype}.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise EvaluationError(
            f"Labels go from {labels.min()} to {labels.max()}, but there are {probabilities.shape[1]} columns of "
            "probabilities; unlabelled rows (-1) must be left out."
        )
    if not np.isfinite(probabilities).all():
        raise EvaluationError("Probabilities hold NaN or infinity.")
    if not np.issubdtype(probabilities.dtype, np.floating):
        probabilities = probabilities.astype(np.float64)
    return labels, probabilities
