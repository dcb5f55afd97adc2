"""How good predictions are: one function from labels and probabilities to the figures of every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.errors import PipelineError

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
TOP = 5  # of top5, which says something from TOP + 1 classes on
BINS = 15  # of the calibration error, the field's usual number
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # below which one may decline to answer
REPEATS, DRAWS = 1000, 10**8  # of the bootstrap: how often, and how many draws are worth waiting for
MANY = 5000  # rows whose sums are as good as normal: they need not be drawn one by one
MOST_CLASSES = 200  # above, the confusion matrix is left out: `predictions.csv` tells the same in less


class EvaluationError(PipelineError, ValueError):
    """Labels and probabilities that do not belong together."""


def evaluate(labels: np.ndarray, probabilities: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Score predicted probabilities against the true labels.

    Parameters
    ----------
    labels : (N,) int array
        True class ids, 0 to K - 1. Classes may be absent.
    probabilities : (N, K) array
        A row of class probabilities for each label, columns by class id. The first largest one is the prediction.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        Plain numbers, fit for JSON: `n`, `accuracy`, `accuracy_ci95` ([low, high], Wilson's interval), `top5` and
        `top5_ci95` likewise (from 6 classes on), `balanced_accuracy` (mean recall of the classes that occur),
        `macro_f1` (over the classes that occur or are predicted), `log_loss` (nats), `brier` (squared distance from
        the truth summed over classes, 0 to 2), `ece` (see `calibration_error`), each of these with its bootstrap
        interval (`…_ci95`),
        `abstaining` (see `risk_coverage`), `per_class` (a mapping for each class id: `n`, `predicted`, `precision`,
        `recall`, `f1`; None where undefined), `confusion` (K rows of true classes; up to 200 classes).

    Raises
    ------
    EvaluationError
        If shapes do not match, there is no row, a label is out of range, or a probability is not a number.
    """
    labels, probabilities = _checked(labels, probabilities)
    predictions = probabilities.argmax(axis=1)
    counts = confusion_matrix(labels, predictions, probabilities.shape[1])
    n, correct = len(labels), int(counts.trace())
    n_classes = len(counts)
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson_interval(correct, n)),
        **(_top(labels, probabilities) if n_classes > TOP else {}),
        "balanced_accuracy": balanced_accuracy(counts),
        "macro_f1": macro_f1(counts),
        "log_loss": log_loss(labels, probabilities),
        "brier": brier_score(labels, probabilities),
        "ece": calibration_error(probabilities.max(axis=1), predictions == labels),
        **_intervals(counts, labels, probabilities, np.random.default_rng(seed)),
        "abstaining": risk_coverage(probabilities.max(axis=1), predictions == labels),
        "per_class": _per_class(counts),
        **({"confusion": counts.tolist()} if n_classes <= MOST_CLASSES else {}),
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
    return float(_losses(labels, np.asarray(probabilities)).mean())


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(own, np.finfo(own.dtype).eps), dtype=np.float64)


def top_accuracy(labels: np.ndarray, probabilities: np.ndarray, top: int = TOP) -> float:
    """Return the share of rows whose true class is among the `top` likeliest; of equals the first class counts."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    before = (probabilities > own) | ((probabilities == own) & earlier)
    return float((before.sum(axis=1) < top).mean())


def _top(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    share, n = top_accuracy(labels, probabilities), len(labels)
    return {"top5": share, "top5_ci95": list(wilson_interval(round(share * n), n))}


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean over rows of Σ (p − truth)² over classes: 0 at best, 2 at worst (Brier, 1950)."""
    return float(_distances(labels, probabilities).mean())


def _distances(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    own = probabilities[np.arange(len(labels)), labels]
    return (probabilities**2).sum(axis=1, dtype=np.float64) + 1 - 2 * own


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Return how often predictions are right, by how sure they were.

    Parameters
    ----------
    confidence : (N,) array
        The predicted class's probability.
    correct : (N,) bool array
    bins : int
        Of equal width, over 0..1.

    Returns
    -------
    list of dict
        For each bin that holds a row `n`, mean `confidence` and `accuracy`.
    """
    place = _bins(confidence, bins)
    n = np.bincount(place, minlength=bins)
    sure, right = (np.bincount(place, values, minlength=bins) for values in (confidence, correct))
    return [
        {"n": int(n[bin]), "confidence": float(sure[bin] / n[bin]), "accuracy": float(right[bin] / n[bin])}
        for bin in np.flatnonzero(n)
    ]


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip((np.asarray(confidence) * bins).astype(int), 0, bins - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: |accuracy − confidence| of each bin, weighted by its rows.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    found = reliability(confidence, correct, bins)
    return sum(bin["n"] * abs(bin["accuracy"] - bin["confidence"]) for bin in found) / len(confidence)


def risk_coverage(
    confidence: np.ndarray, correct: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, Any]]:  # fmt: skip
    """Return how many rows are answered, and how well, by who declines below a probability.

    Source: El-Yaniv and Wiener, "On the foundations of noise-free selective classification", JMLR 2010.

    Parameters
    ----------
    confidence : (N,) array
        The predicted class's probability.
    correct : (N,) bool array
    thresholds : sequence of float

    Returns
    -------
    list of dict
        For each threshold `below`, `answered` (share of the rows), and `accuracy` and `accuracy_ci95` of those, None
        where there are none.
    """
    found = []
    for threshold in thresholds:
        answered = np.asarray(confidence) >= threshold
        n, right = int(answered.sum()), int(np.asarray(correct)[answered].sum())
        found.append({"below": threshold, "answered": n / len(answered), "accuracy": right / n if n else None,
                      "accuracy_ci95": list(wilson_interval(right, n)) if n else None})
    return found


def balanced_accuracy(counts: np.ndarray) -> float:
    """Return the mean recall of the classes that occur, from a confusion matrix."""
    return float(_recall_and_f1(counts.sum(axis=1), counts.sum(axis=0), counts.diagonal())[0])


def macro_f1(counts: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur or are predicted, from a confusion matrix."""
    return float(_recall_and_f1(counts.sum(axis=1), counts.sum(axis=0), counts.diagonal())[1])


def _recall_and_f1(sizes: np.ndarray, predicted: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean recall and mean F1 from (..., K) counts: true rows, predicted rows, and rows that are both."""
    occurs, touched = sizes > 0, sizes + predicted
    recalls = np.divide(right, sizes, out=np.zeros(sizes.shape), where=occurs)
    f1 = np.divide(2 * right, touched, out=np.zeros(sizes.shape), where=touched > 0)
    return recalls.sum(axis=-1) / occurs.sum(axis=-1), f1.sum(axis=-1) / (touched > 0).sum(axis=-1)


def _per_class(counts: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for right, n, predicted in zip(*map(np.ndarray.tolist, (counts.diagonal(), counts.sum(1), counts.sum(0))),
                                   strict=True):
        found.append({
            "n": n, "predicted": predicted, "precision": right / predicted if predicted else None,
            "recall": right / n if n else None, "f1": 2 * right / (n + predicted) if n + predicted else None,
        })
    return found


def _intervals(
    counts: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Return 95 % percentile bootstrap intervals: rows are drawn again, with repeats, and scored again.

    Where every prediction is right, resampling knows nothing of errors and would call the score certain; Wilson's
    interval of the accuracy stands in.
    """
    n = len(labels)
    repeats = int(np.clip(DRAWS // n, 100, REPEATS))
    if counts.trace() == n:
        balanced = f1 = list(wilson_interval(n, n))
    else:
        balanced, f1 = map(_middle, _resampled(counts, repeats, rng))
    sure = probabilities.max(axis=1).astype(np.float64)
    gaps, place = (probabilities.argmax(axis=1) == labels) - sure, _bins(sure, BINS)
    order = np.argsort(place, kind="stable")  # a bin's rows side by side
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    values = np.stack([_losses(labels, probabilities), _distances(labels, probabilities), gaps])[:, order]
    drawn = (_drawn if n <= MANY else _drawn_together)(values, starts, repeats, rng)
    error = float(np.abs(np.add.reduceat(values[2], starts)).sum() / n)
    variances = np.add.reduceat((sure * (1 - sure))[order], starts)
    return {
        "balanced_accuracy_ci95": balanced, "macro_f1_ci95": f1, "log_loss_ci95": _middle(drawn[0]),
        "brier_ci95": _middle(drawn[1]), "ece_ci95": _error_interval(error, drawn[2], variances, n, rng),
    }  # fmt: skip


def _drawn(values: np.ndarray, starts: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Return the means of the first two of (3, n) values, and the calibration error of the third, (3, repeats)."""
    n, drawn = values.shape[1], np.empty((3, repeats))
    for turn in range(repeats):
        times = np.bincount(rng.integers(0, n, n, dtype=np.uint32), minlength=n)
        drawn[:2, turn] = values[:2] @ times / n
        drawn[2, turn] = np.abs(np.add.reduceat(values[2] * times, starts)).sum() / n
    return drawn


def _drawn_together(values: np.ndarray, starts: np.ndarray, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """Return what `_drawn` does, from how many rows each bin gets and a normal distribution of what they sum up to."""
    n, drawn = values.shape[1], np.empty((3, repeats))
    drawn[:2] = values[:2].mean(axis=1, keepdims=True)
    drawn[:2] += rng.normal(size=(2, repeats)) * values[:2].std(axis=1, keepdims=True) / np.sqrt(n)
    sizes = np.diff(starts, append=n)
    means = np.add.reduceat(values[2], starts) / sizes
    variances = np.maximum(np.add.reduceat(np.square(values[2]), starts) / sizes - means**2, 0)
    times = rng.multinomial(n, sizes / n, size=repeats)
    drawn[2] = np.abs(times * means + np.sqrt(times * variances) * rng.normal(size=times.shape)).sum(axis=1) / n
    return drawn


def _error_interval(
    error: float, drawn: np.ndarray, variances: np.ndarray, n: int, rng: np.random.Generator
) -> list[float]:
    """Return the interval of a calibration error from its resamples.

    It is a sum of absolute values: chance alone makes it larger, and each resample once more, so plain percentiles
    would exclude a perfect calibration for certain. The lower end is therefore that of the reversed interval [1]_,
    and 0 where chance gives a perfectly calibrated classifier such an error 1 time in 40 or more [2]_; of the upper
    end the resamples' shift is taken off.

    References
    ----------
    .. [1] Davison and Hinkley, "Bootstrap methods and their application", 1997, section 5.2.
    .. [2] Broecker and Smith, "Increasing the reliability of reliability diagrams", Weather and Forecasting 2007.
    """
    high = _middle(drawn)[1]
    chance = np.abs(rng.normal(size=(len(drawn), len(variances))) * np.sqrt(variances)).sum(axis=1) / n
    least = 0.0 if error <= np.quantile(chance, 0.975) else max(0.0, min(error, 2 * error - high))
    return [least, max(error, high - max(0.0, float(np.median(drawn)) - error))]


def _resampled(counts: np.ndarray, repeats: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return balanced accuracy and macro F1 of resampled rows; both depend on the confusion matrix alone.

    Drawing n rows anew is drawing its cells from a multinomial distribution, many times faster.
    """
    true, predicted = np.nonzero(counts)
    cells = rng.multinomial(counts.sum(), counts[true, predicted] / counts.sum(), size=repeats)
    shape = (repeats, len(counts))
    sizes, columns, right = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for cell, (row, column) in enumerate(zip(true.tolist(), predicted.tolist(), strict=True)):
        sizes[:, row] += cells[:, cell]
        columns[:, column] += cells[:, cell]
        if row == column:
            right[:, row] = cells[:, cell]
    return _recall_and_f1(sizes, columns, right)


def _middle(values: np.ndarray) -> list[float]:
    return np.quantile(values, (0.025, 0.975)).tolist()


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
