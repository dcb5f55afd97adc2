"""Features of several layers in one row: each layer's columns scaled apart, and the layers that help chosen.

Source: Evci et al., "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning", ICML 2022. There
columns are chosen by a group penalty; here whole layers are, one after the other from the output down, by log loss on
images left out. So they cannot end worse than the pooled features alone but by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.errors import HeadError
from .penalty_choice import choose_penalty
from .rows import one_thread
from .scaling import mean_and_deviation
from .solver import CROSS_ENTROPY

MOST_ROWS = 5000  # of train that layers are chosen on
WORTH = 1e-3  # share of the least log loss within which fewer layers are taken
Groups = Sequence[tuple[int, float]]
"""Of each group the number of its columns, and the factor that they are multiplied by; 0 leaves them out."""


def factors(groups: Groups, width: int) -> np.ndarray:
    """Return the (D,) factor of each column.

    Raises
    ------
    HeadError
        If the groups are not of `width` columns together.
    """
    widths = [int(count) for count, _ in groups]
    if sum(widths) != width:
        raise HeadError(f"The groups have {sum(widths)} columns, and the features {width}.")
    return np.repeat([float(factor) for _, factor in groups], widths)


def choose_groups(
    X: np.ndarray, y: np.ndarray, names: Sequence[str], widths: Sequence[int], first: str, seed: int = 0
) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """Choose among groups of columns for a linear head.

    Parameters
    ----------
    X : (N, D) array
        Training rows.
    y : (N,) array
        Their labels.
    names, widths : sequences of str and int
        Of the groups, in the order of the columns.
    first : str
        The group that is always in.
    seed : int
        Of the rows left out.

    Returns
    -------
    groups : list of (int, float)
        See `Groups`. A column of a chosen group varies as much as one of the first, on average.
    report : dict
        `chosen` and `left_out` names, `alone` and `together` (log loss of the first group alone and of all chosen, on
        the `n` images left out), and a `sentence`. Where nothing can be left out the first is taken, without figures.
    """
    ends = np.cumsum([0, *widths])
    columns = {name: slice(start, stop) for name, start, stop in zip(names, ends[:-1], ends[1:], strict=True)}
    with one_thread(X):
        _, deviation = mean_and_deviation(X)
        varying = {name: float(np.square(deviation[own]).mean()) for name, own in columns.items()}
        scale = {name: float(np.sqrt(varying[first] / varying[name])) for name in names}
        found = _Choice({name: X[:, own] * np.asarray(scale[name], X.dtype) for name, own in columns.items()},
                        np.unique(y, return_inverse=True)[1], seed)
        downwards = [name for name in reversed(names) if name != first]
        candidates = [[first, *downwards[:count]] for count in range(len(names))]
        losses = [found.loss(one) for one in candidates]
    chosen = candidates[next(place for place, loss in enumerate(losses) if loss <= (1 + WORTH) * min(losses))]
    figures = {"alone": losses[0], "together": losses[len(chosen) - 1], "n": found.left_out} if found.left_out else {}
    report = {"chosen": [name for name in names if name in chosen],
              "left_out": [name for name in names if name not in chosen], **figures}
    kept = [(count, scale[name] if name in chosen else 0.0) for name, count in zip(names, widths, strict=True)]
    return kept, {**report, "sentence": _sentence(report, first)}


class _Choice:
    """Log losses, on rows left out, of some groups together."""

    def __init__(self, scaled: dict[str, np.ndarray], codes: np.ndarray, seed: int):
        self.scaled, self.codes, self.seed, self.left_out = scaled, codes, seed, 0
        self._weights = np.ones(len(codes))

    def loss(self, names: Sequence[str]) -> float:
        """Return the least log loss over penalties; infinity where no image can be left out."""
        Z = np.concatenate([self.scaled[name] for name in names], axis=1)
        found, _ = choose_penalty(Z, self.codes, self._weights, CROSS_ENTROPY, seed=self.seed)
        self.left_out = found["n"]
        return min(found["log_loss"], default=np.inf)


def _sentence(report: dict[str, Any], first: str) -> str:
    of = len(report["chosen"]) + len(report["left_out"])
    if "alone" not in report:
        return f"{first} alone of {of} layers: too few images to choose among them"
    if len(report["chosen"]) == 1:
        return (f"{first} alone of {of} layers: the others do not lower the log loss of {report['alone']:.4f} on "
                f"{report['n']:,} training images left out")
    chosen = ", ".join(report["chosen"])
    return (f"{len(report['chosen'])} of {of} layers ({chosen}): log loss {report['together']:.4f} on {report['n']:,} "
            f"training images left out, {report['alone']:.4f} with {first} alone")
