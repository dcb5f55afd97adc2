"""From something trained to a run folder: every split scored by one function, everything written."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backbones import NETWORK_FILE, description
from .certainty import held_out_figures
from .classifier import ImageClassifier, linear_head, metadata_of
from .data import Dataset
from .evaluation import evaluate
from .fitting import FittedHead, probabilities_of
from .runs import Run, file_safe, prediction_rows, write_run, writing
from .store import FeatureCache

if TYPE_CHECKING:
    from .finetuning import Finetuned, FinetuneSettings

SPLITS = ("train", "val", "test")
PROBE_WON = ("no epoch of fine-tuning was better on val than the linear probe that it started from: the probe won, and "
             "this run holds its weights")
STORED_ROWS = {"rows_", "support_"}  # of heads that keep training images: not learned, only kept


def save_head_run(cache: FeatureCache, fitted: FittedHead, runs_dir: Path, name: str | None = None) -> Run:
    """Score a head on every split of its cache, and write the run folder."""
    from .heads import save_head

    rows = np.flatnonzero((cache.labels >= 0) & np.isin(cache.splits, SPLITS))
    scores = probabilities_of(cache, fitted.head, rows, None if fitted.tta else 0)
    labels, splits, paths = cache.labels[rows], cache.splits[rows], cache.paths
    usual = f"{cache.meta['dataset']}-{cache.meta['label']}-{fitted.name}{'-tta' if fitted.tta else ''}"
    path = runs_dir / file_safe(name or usual)
    learned = {key: value for key, value in vars(fitted.head).items() if key not in STORED_ROWS}
    metrics = {
        "name": path.name,
        "kind": "head",
        "dataset": cache.meta["dataset"],
        "backbone": cache.meta["backbone"],
        "features": cache.meta["label"],
        "head": fitted.name,
        "classes": list(cache.classes),
        "splits": score_splits(splits, labels, scores),
        "seconds": _seconds(float(cache.meta.get("seconds") or 0), fitted.seconds),
        "trainable_parameters": sum(
            value.size for value in learned.values() if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        ),
        "selection": fitted.selection,
        "spec_sha256": cache.spec.sha256,
        "streamed": fitted.streamed,
        "tta": fitted.tta,
        **({"views": fitted.views} if fitted.views else {}),
        **({"joined": list(cache.parts)} if cache.parts else {}),
        **({"notes": [*cache.notes, *fitted.notes]} if cache.notes or fitted.notes else {}),
        **({"choice": fitted.choice} if fitted.choice else {}),
        **({"repeats": fitted.repeats} if fitted.repeats else {}),
        **({"calibration": held_out_figures(cache, fitted, splits, labels, scores)} if fitted.calibration else {}),
    }
    origin = {"name": cache.meta["dataset"], "root": cache.meta["root"], **cache.meta.get("origin", {})}
    metadata = metadata_of(cache.classes, cache.spec)

    def save(folder: Path) -> None:
        save_head(fitted.head, folder, metadata)
        if fitted.candidates:
            with (folder / "sweep.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, list(fitted.candidates[0]))
                table.writeheader()
                table.writerows(fitted.candidates)

    with writing(path):
        return write_run(
            path,
            metrics=metrics,
            config={
                "dataset": origin,
                "backbone": cache.meta["description"],
                "head": {"name": fitted.name, "tta": fitted.tta, "settings": fitted.settings},
                "calibration": _asked(fitted.calibration) if fitted.calibration else None,
            },
            predictions=prediction_rows([paths[row] for row in rows], splits, labels, scores, cache.classes),
            save_weights=save,
        )


def _asked(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {"on": calibration["selection"], "coverage": calibration["coverage"], "folds": calibration["folds"]}


def save_finetuned(
    result: Finetuned, dataset: Dataset, settings: FinetuneSettings, path: Path, origin: Mapping[str, Any],
    extract_seconds: float, label: str,
) -> Run:  # fmt: skip
    from safetensors.torch import save_file

    scored = [(split, scores) for split, scores in result.scores.items()]
    indices = np.concatenate([scores.indices for _, scores in scored])
    scores = np.concatenate([scores.probabilities for _, scores in scored])
    labels, splits = dataset.labels[indices], dataset.splits[indices]
    metrics = {
        "name": path.name,
        "kind": "finetune",
        "dataset": dataset.name,
        "backbone": result.backbone.name,
        "features": label,
        "strategy": settings.strategy,
        "classes": list(dataset.classes),
        "splits": score_splits(splits, labels, scores),
        "seconds": _seconds(extract_seconds, result.seconds),
        "trainable_parameters": result.trainable_parameters,
        "selection": result.selection,
        "best_epoch": result.best_epoch,
        **({"mix": result.mix} if result.mix is not None else {}),
        **({"notes": [PROBE_WON]} if _probe_won(result) else {}),
        "skipped": len(result.failures),
    }

    def save(folder: Path) -> None:
        save_file({key: value.contiguous() for key, value in result.state.items()}, folder / NETWORK_FILE)
        ImageClassifier(result.backbone, linear_head(result.weight, result.bias), dataset.classes).save(folder)
        (folder / "history.json").write_text(json.dumps(result.history, indent=2) + "\n")

    return write_run(
        path,
        metrics=metrics,
        config={"dataset": origin, "backbone": description(result.backbone), "finetune": settings.to_dict(),
                "skipped": result.failures},
        predictions=prediction_rows([dataset.paths[index] for index in indices], splits, labels, scores,
                                    dataset.classes),
        save_weights=save,
    )


def _probe_won(result: Finetuned) -> bool:
    """Tell whether what is kept is the linear probe that training started from."""
    if result.mix is not None:
        return result.mix == 0
    return result.best_epoch == 0 and result.selection == "val"


def score_splits(splits: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Evaluate each split that has images.

    Parameters
    ----------
    splits, labels : (N,) arrays
    scores : (N, K) array
        Probabilities.
    """
    return {name: evaluate(labels[splits == name], scores[splits == name]) for name in SPLITS if (splits == name).any()}


def _seconds(extract_seconds: float, train_seconds: float) -> dict[str, float]:
    return {
        "extract": round(extract_seconds, 3),
        "train": round(train_seconds, 3),
        "total": round(extract_seconds + train_seconds, 3),
    }
