"""Is one classifier better than another? Paired tests on the very images that both predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.errors import RunError
from .metrics import Z95

Z_POWER = 0.8416212335729143  # the normal distribution's 80 % point
SIGNIFICANT = 0.05

Rows = Iterable[Mapping[str, str]]


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images.

    Attributes
    ----------
    n : int
        Images that both predicted.
    gained, lost : int
        Images that only the first, and only the second, got right.
    unmatched : int
        Images that only one of them predicted, or under another label.
    """

    n: int
    gained: int
    lost: int
    unmatched: int = 0

    @property
    def difference(self) -> float:
        """The first one's accuracy less the second one's."""
        return (self.gained - self.lost) / self.n

    @cached_property
    def p_value(self) -> float:
        """How probable so uneven a split of the images that one alone got right is, were both equally good."""
        return mcnemar(self.gained, self.lost)

    def interval(self, comparisons: int = 1) -> tuple[float, float]:
        """Return the 95 % interval of the difference; see `paired_interval`."""
        return paired_interval(self.n, self.gained, self.lost, comparisons)

    @property
    def needed(self) -> int | None:
        """Images that would be needed to tell such a difference apart; None where there is none."""
        return images_needed(self.n, self.gained, self.lost)


def pair(first: Rows, second: Rows) -> Paired | None:
    """Match rows of two `predictions.csv` by file name; None where they share no image.

    Parameters
    ----------
    first, second : iterable of mappings
        With ``filename``, ``label`` and ``prediction``; of one split each.
    """
    ours, theirs = ({row["filename"]: (row["label"], row["prediction"]) for row in rows} for rows in (first, second))
    shared = [name for name in ours if name in theirs and ours[name][0] == theirs[name][0]]
    if not shared:
        return None
    right = np.array([[own[name][0] == own[name][1] for own in (ours, theirs)] for name in shared])
    gained, lost = int((right[:, 0] & ~right[:, 1]).sum()), int((right[:, 1] & ~right[:, 0]).sum())
    return Paired(len(shared), gained, lost, len(ours.keys() | theirs.keys()) - len(shared))


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p value of McNemar's test, from the images that only one of two got right.

    Source: Q. McNemar, Psychometrika 1947; exact as a binomial test of `gained` in ``gained + lost`` at 1/2.
    """
    n, term, total = gained + lost, 1, 0
    for k in range(min(gained, lost) + 1):
        total += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * total / 2**n) if n < 1000 else min(1.0, _ratio(2 * total, n))


def _ratio(numerator: int, power: int) -> float:
    """Return numerator / 2**power where both overflow a float."""
    shift = max(0, numerator.bit_length() - 64)
    return math.ldexp(numerator >> shift, shift - power)


def paired_interval(n: int, gained: int, lost: int, comparisons: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of a difference of accuracies on the same n images, out of so many comparisons.

    It leaves out 0 exactly where McNemar's p value, corrected for the number of comparisons (Bonferroni), is below 5 %,
    and all intervals of one table hold their true values together 95 times in 100 or more.

    Source: the exact interval of a share, Clopper and Pearson, Biometrika 1934: of the images that only one got right,
    those that the first did, and of all images, those that only one did. The first share alone decides the sign; the
    second, of which each end takes the bound that is further out, makes the interval wider than need be.
    """
    tail, differing = SIGNIFICANT / comparisons / 2, gained + lost
    low, high = (2 * bound - 1 for bound in _exact_share(gained, differing, tail))
    fewest, most = _exact_share(differing, n, tail)
    return low * (most if low < 0 else fewest), high * (most if high > 0 else fewest)


def _exact_share(count: int, n: int, tail: float) -> tuple[float, float]:
    """Return the bounds of a share, of which `count` in `n` were seen, with so much probability beyond each."""
    from scipy.special import betaincinv

    low = float(betaincinv(count, n - count + 1, tail)) if count else 0.0
    return low, float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0


def images_needed(n: int, gained: int, lost: int) -> int | None:
    """Return how many images McNemar's test needs to find this difference 4 times in 5; None for no difference.

    Source: R. Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics
    1987.
    """
    difference, differing = abs(gained - lost) / n, (gained + lost) / n
    if not difference:
        return None
    root = Z95 * math.sqrt(differing) + Z_POWER * math.sqrt(differing - difference**2)
    return math.ceil((root / difference) ** 2)


def corrected(p_value: float, comparisons: int) -> float:
    """Return a p value corrected (Bonferroni) for being one of several, as `paired_interval` is."""
    return min(1.0, comparisons * p_value)


def verdict(paired: Paired, names: tuple[str, str], seconds: tuple[float, float], comparisons: int = 1) -> str:
    """Say in one sentence what is known.

    Parameters
    ----------
    paired : Paired
    names : tuple of str
        Of the two classifiers.
    seconds : tuple of float
        That each took.
    comparisons : int
        For whose number both the interval and the verdict are corrected.
    """
    low, high = paired.interval(comparisons)
    p_value = corrected(paired.p_value, comparisons)
    images = f"{paired.n:,} images"
    if p_value < SIGNIFICANT:
        known = f"{'better' if paired.difference > 0 else 'worse'} on {images} (p = {p_value:.2g})"
    elif paired.needed is None:
        known = f"not distinguishable on {images}, nor different on them"
    else:
        enough = paired.needed > paired.n
        more = f"about {rounded(paired.needed):,} would be needed" if enough else "too many comparisons for so few"
        known = f"not distinguishable on {images}; {more}"
    apart = f" ({paired.unmatched:,} images that only one of them has are left out)" if paired.unmatched else ""
    return (f"{names[0]} vs {names[1]}: {100 * paired.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
            f"{_times(*seconds)}: {known}{apart}.")


def compared(
    runs: Sequence[dict[str, Any]], rows: Mapping[str, Rows], baseline: str | None = None
) -> list[dict[str, Any]]:
    """Return the metrics of runs, each with what is known of it against the best and a baseline.

    Parameters
    ----------
    runs : sequence of dict
        Metrics with ``split``, those of a data set together, the best first.
    rows : mapping
        From a run's name to its rows of `predictions.csv` of that split.
    baseline : str, optional
        Name of the run that all others of its data set are compared with.

    Returns
    -------
    list of dict
        With ``versus_best`` or, for the data set of the baseline, ``versus_baseline``: None for that run itself, else
        ``run`` and the fields of `as_fields`, or ``run`` and a ``sentence`` where the two share no image. Intervals
        and p values are corrected alike for the number of comparisons with the same run.

    Raises
    ------
    RunError
        If the baseline is not among the runs.
    """
    if baseline is not None and baseline not in rows:
        raise RunError(f"The baseline {baseline!r} is not among the compared runs: {', '.join(sorted(rows))}.")
    best: dict[str, dict[str, Any]] = {}
    for run in runs:
        best.setdefault(run["dataset"], run)
    found = {run["name"]: dict(run) for run in runs}
    given = {run["dataset"]: run for run in runs if run["name"] == baseline}
    chosen = [("versus_best", run) for name, run in best.items() if name not in given]
    chosen += [("versus_baseline", run) for run in given.values()]
    for field, other in chosen:
        group = [run for run in runs if run["dataset"] == other["dataset"]]
        for name, result in _versus(other, group, rows).items():
            found[name][field] = result
    return list(found.values())


def _versus(other: Mapping[str, Any], group: Sequence[Mapping[str, Any]], rows: Mapping[str, Rows]) -> dict[str, Any]:
    found: dict[str, Any] = {other["name"]: None}
    pairs = {run["name"]: pair(rows[run["name"]], rows[other["name"]]) for run in group if run is not other}
    matched = {name: paired for name, paired in pairs.items() if paired}
    for run in group:
        name, paired = run["name"], matched.get(run["name"])
        if paired:
            seconds = (run["seconds"]["total"], other["seconds"]["total"])
            sentence = verdict(paired, (name, other["name"]), seconds, len(matched))
            found[name] = {"run": other["name"], **as_fields(paired, len(matched), sentence)}
        elif run is not other:
            found[name] = {"run": other["name"], "n": 0,
                           "sentence": f"{name} vs {other['name']}: no test image in common, so nothing is known."}
    return found


def as_fields(paired: Paired, comparisons: int, sentence: str) -> dict[str, Any]:
    """Return a comparison as plain numbers, fit for JSON; interval and verdict corrected for so many comparisons."""
    p_value = corrected(paired.p_value, comparisons)
    return {
        "n": paired.n, "unmatched": paired.unmatched, "gained": paired.gained, "lost": paired.lost,
        "difference": paired.difference, "difference_ci95": list(paired.interval(comparisons)),
        "comparisons": comparisons, "p_value": paired.p_value, "p_value_corrected": p_value,
        "distinguishable": p_value < SIGNIFICANT, "images_needed": paired.needed, "sentence": sentence,
    }  # fmt: skip


def _times(ours: float, theirs: float) -> str:
    if min(ours, theirs) <= 0:
        return ""
    ratio = ours / theirs
    if 0.8 < ratio < 1.25:
        return ", as many seconds"
    factor = max(ratio, 1 / ratio)
    return f", {factor:,.{0 if factor >= 10 else 1}f} times {'the seconds' if ratio > 1 else 'as fast'}"


def rounded(count: int) -> int:
    """Return a number of images with two leading digits: more would claim a precision that the estimate has not."""
    step = 10 ** max(0, len(str(count)) - 2)
    return round(count / step) * step
