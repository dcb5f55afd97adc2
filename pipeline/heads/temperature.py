"""One number that makes scores honest probabilities: softmax(scores / T)."""

from __future__ import annotations

import numpy as np

MOST_SCORES = 20_000_000  # one number needs no more of them
LOWEST, HIGHEST = -12.0, 12.0  # of log T relative to the scores' own spread


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

    def loss(log_temperature: float) -> float:
        factor = np.exp(-log_temperature) / spread
        return float(np.log(np.exp(scores * factor).sum(axis=1)).mean() - linear * factor)

    from scipy.optimize import minimize_scalar

    found = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-4})
    return float(spread * np.exp(found.x))
