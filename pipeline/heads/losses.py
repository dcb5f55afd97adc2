"""What linear classifiers are solved for: losses of scores, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST = -60.0  # exp of less, times a weight, would be a denormal float32, with which processors are far slower


@dataclass(frozen=True)
class Loss:
    """A convex loss of scores.

    Attributes
    ----------
    slope : callable
        For several solutions at once, in the precision of the scores: from scores (A, K, N), which it overwrites with
        the derivative of the weighted loss, codes (N,) and weights (N,) to the losses (A,).
    bend : callable
        From scores (N, K) and codes (N,) to the (N,) mean second derivative over the classes.
    doubled : bool
        Whether with two classes the penalty counts twice: then it is that of the difference of the two rows of W,
        as in binary logistic regression.
    """

    slope: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    bend: Callable[[np.ndarray, np.ndarray], np.ndarray]
    doubled: bool = False


def _softmax_bend(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return (shares * (1 - shares)).mean(axis=1)


def _softmax_slope(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = np.arange(len(codes))
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[:, codes, rows]
    np.exp(np.maximum(scores, LEAST, out=scores), out=scores)
    total = scores.sum(axis=1)
    scores *= (weights / total)[:, None]
    scores[:, codes, rows] -= weights
    return ((np.log(total) - own) * weights).sum(axis=1, dtype=np.float64)


def _hinge_slope(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = np.arange(len(codes))
    scores[:, codes, rows] *= -1
    scores += 1  # the shortfall, where above 0
    np.maximum(scores, 0, out=scores)
    loss = np.einsum("akn,akn,n->a", scores, scores, weights)
    scores *= 2 * weights
    scores[:, codes, rows] *= -1
    return loss


def _hinge_bend(scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return 2 * (_shortfall(scores, codes)[0] > 0).mean(axis=1)


def _shortfall(scores: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sign = np.full_like(scores, -1)
    sign[np.arange(len(codes)), codes] = 1
    return np.maximum(1 - sign * scores, 0), sign


CROSS_ENTROPY = Loss(_softmax_slope, _softmax_bend, doubled=True)
SQUARED_HINGE = Loss(_hinge_slope, _hinge_bend)
