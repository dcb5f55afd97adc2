"""Every figure of a run again, without the images that leaked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import PipelineError
from ..evaluation import evaluate
from ..runs import Run
from ..store import FeatureCache
from .findings import EVALUATED, Audit

HARD = ("n", "accuracy", "accuracy_ci95", "balanced_accuracy", "balanced_accuracy_ci95", "macro_f1", "macro_f1_ci95",
        "per_class", "confusion")  # what labels and predictions alone give


@dataclass(frozen=True)
class Rescored:
    """A run's figures on one split, with all images and without the leaked ones.

    Attributes
    ----------
    run, split : str
    leaked : int
        Images left out.
    everything, clean : dict
        See `evaluate`; of a fine-tuned run without those that take all probabilities. `clean` is empty if no image
        is left.
    """

    run: str
    split: str
    leaked: int
    everything: dict[str, Any]
    clean: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def rescore(cache: FeatureCache, audit: Audit, runs: Iterable[Run]) -> list[Rescored]:
    """Score runs of this data set again without the leaked images.

    A head that was trained on this very cache is applied to its features; of any other run the saved predictions
    are counted again.

    Raises
    ------
    PipelineError
        If a run is of other data.
    """
    leaked = {cache.paths[row] for row in audit.leaked.tolist()}
    found = []
    for run in runs:
        if run.metrics["dataset"] != audit.dataset or tuple(run.metrics["classes"]) != cache.classes:
            raise PipelineError(f"The run {run.name!r} is of the data set {run.metrics['dataset']!r} with "
                                f"{len(run.metrics['classes'])} classes, not of {audit.dataset!r}.")
        for split in EVALUATED:
            names, labels, scores, known = _scores(run, cache, split)
            if not names:
                continue
            kept = np.array([name not in leaked for name in names])
            everything, clean = (_figures(labels[chosen], scores[chosen], known) for chosen in (kept | True, kept))
            found.append(Rescored(run.name, split, int((~kept).sum()), everything, clean))
    return found


def _figures(labels: np.ndarray, scores: np.ndarray, known: Collection[str] | None) -> dict[str, Any]:
    figures = evaluate(labels, scores) if len(labels) else {}
    return {key: value for key, value in figures.items() if known is None or key in known}


def _scores(
    run: Run, cache: FeatureCache, split: str
) -> tuple[list[str], np.ndarray, np.ndarray, Collection[str] | None]:
    """Return names, labels and probabilities of a split, and which figures these can give (None: all)."""
    if run.metrics["kind"] == "head" and run.metrics.get("spec_sha256") == cache.spec.sha256:
        from ..heads import load_head, probabilities

        rows = cache.indices(split)
        head, _ = load_head(run.path)
        features = cache.read_rows(rows, view=None if run.metrics.get("tta") else 0)
        scores = probabilities(head, features, len(cache.classes))
        return [cache.paths[row] for row in rows], cache.labels[rows], scores, None
    place = {name: index for index, name in enumerate(cache.classes)}
    found = [row for row in run.predictions(split) if row["label"] in place]
    labels = np.array([place[row["label"]] for row in found], int)
    predicted = np.array([place[row["prediction"]] for row in found], int)
    return [row["filename"] for row in found], labels, np.eye(len(cache.classes))[predicted], HARD
