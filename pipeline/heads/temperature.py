"""One number that makes scores honest probabilities: softmax(scores / T)."""

from __future__ import annotations

import numpy as np

MOST_SCORES = 20_000_000  # one number needs no more of them
LOWEST, HIGHEST = -12.0, 12.0  # of log T relative to the scores' own spread
CLOSE = 1e-4  # to the best log T


def sample_for_temperature(n: int, n_classes: int) -> np.ndarray:
    """Return (N,) bool: the rows to fit a temperature on; all, unless their scores would fill the memory."""
    used = np.zeros(n, bool)
    used[:: -(-n * n_classes // MOST_SCORES)] = True
    return used


def fit_temperature(scores: np.ndarray, codes: np.ndarray) -> float:
    """Return the T with the smallest log loss of ``softmax(scores / T)``.

    Source: Guo et al., "On calibration of modern neural networks", 2017. The order of classes within a row, and so
    the accuracy, does not change. That N of N rows are right does not make the next one certain: as in Platt,
    "Probabilistic outputs for support vector machines", 1999, a share 1 / (N + 2) of each row counts as wrong, here as
    of its likeliest other class.

    Parameters
    ----------
    scores : (N, K) array
        Of rows that did not train the head.
    codes : (N,) int array
        True classes.
    """
    scores = np.asarray(scores, np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    spread = float(-scores.mean()) or 1.0
    own = scores[np.arange(len(codes)), codes]
    others = scores.copy()
    others[np.arange(len(codes)), codes] = -np.inf
    doubt = 1 / (len(codes) + 2)
    linear = (1 - doubt) * own.mean() + doubt * others.max(axis=1).mean()
    low, high, place = LOWEST, HIGHEST, 0.0  # of log T; the loss is convex in 1 / T, so its slope changes sign once
    while high - low > CLOSE:
        factor = np.exp(-place) / spread
        shares = np.exp(scores * factor)
        shares /= shares.sum(axis=1, keepdims=True)
        weighed = shares * scores
        means = weighed.sum(axis=1)
        slope = means.mean() - linear
        bend = (np.vdot(weighed, scores) - means @ means) / len(means)
        low, high = (place, high) if slope > 0 else (low, place)
        newton = place + slope / (bend * factor) if bend > 0 else low
        if low < newton < high and abs(newton - place) < CLOSE:
            place = newton
            break
        place = newton if low < newton < high else (low + high) / 2
    return float(spread * np.exp(place))
