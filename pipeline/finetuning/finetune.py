"""Fine-tuning as a command: the probe that some strategies start from, training, and the run folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbones import DEFAULT, NETWORK_FILE, Backbone, description
from ..core.errors import CacheError, PipelineError, RunError, check_keywords
from ..core.progress import Progress, note, shown, silent
from ..data import DEFAULT_DATA, Dataset, Limits, on_disk
from ..data.files import DEFAULT_LIMITS
from ..data.splits import SplitRule
from ..engines import Running
from ..runs.classifier import ImageClassifier, linear_head
from ..runs.run import Run, RunPlace, claimed, file_safe, place_for, prediction_rows, write_run
from ..runs.scores import score_splits, seconds_of
from ..stage_one.caches import backbone_of, changes, load_named
from ..stage_one.extraction import extract, extract_features
from ..stage_two.fit import Training, fit_head
from ..store import FeatureCache, Spec, cache_path

if TYPE_CHECKING:
    from .activations import Activations
    from .result import Finetuned
    from .settings import FinetuneSettings

POLL = 1.0  # seconds between looks for what another process is making
PROBE_WON = ("no epoch of fine-tuning was better on val than the linear probe that it started from: the probe won, and "
             "this run holds its weights")


def finetune(
    data: Any = DEFAULT_DATA,
    backbone: str | Backbone = DEFAULT,
    settings: FinetuneSettings | None = None,
    *,
    preset: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_duplicates: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    cache_dir: str | Path = "cache",
    dataset_name: str | None = None,
    runs_dir: str | Path = "runs",
    progress: Progress | bool = silent,
    log: Callable[[str], object] = note,
    **more: Any,
) -> Run | None:
    """Retrain the whole network, or part of it, and score it as a head is scored.

    Parameters
    ----------
    data, val_fraction, test_fraction, group_duplicates, limits, cache_dir, dataset_name
        See `pipeline.extract`.
    backbone : str or Backbone
    settings : FinetuneSettings, optional
        Strategy, epochs, optimiser and so on. Each can be given as it is, too: ``epochs=5``.
    preset : str, optional
        A name in `pipeline.finetuning.PRESETS`, instead of `settings`; by default ``one-cycle``.
    name : str, optional
        Of the run; by default from data set, backbone and strategy. Where there is one of that name and other settings,
        a number is put behind it.
    overwrite : bool
        Replace that one instead.
    resume : bool
        Go on from the run's last checkpoint; a run that is finished is returned as it is.
    log : callable
        Takes a line an epoch; by default it is logged.

    Returns
    -------
    Run or None
        None in all processes but the first, where several train together.

    Raises
    ------
    BusyError
        If another process is training this run.
    UnknownNameError
        If there is no such setting.
    PipelineError
        For whatever else the user can mend.
    """
    from .settings import AUTO, DEFAULT_PRESET, STRATEGIES, FinetuneSettings
    from .training import train, training_plan

    data = on_disk(data, cache_dir)
    progress = shown(progress)
    check_keywords("setting of finetune", more, [field.name for field in fields(FinetuneSettings)], finetune)
    if settings and preset:
        raise PipelineError("Give settings or a preset, not both.")
    settings = replace(settings, **more) if settings else FinetuneSettings.of(preset or DEFAULT_PRESET, **more)
    network = backbone_of(backbone).plain
    if settings.unfreeze == AUTO:
        from .cutting import with_unfreeze

        settings = with_unfreeze(settings, network)
    splitting = SplitRule(val_fraction, test_fraction, group_duplicates).to_dict()
    dataset = load_named(data, dataset_name, cache_dir=cache_dir, limits=limits, progress=progress, **splitting)
    asked = {"data": str(dataset.root), **splitting, "features": network.spec.sha256,
             "finetune": settings.deciding}
    usual = Path(runs_dir) / file_safe(name or f"{dataset.name}-{network.label}-{settings.strategy}")
    first = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    for line in dataset.notes if first else ():
        log(f"note: {line}")
    claim = claimed(usual, asked, overwrite) if first else nullcontext(place_for(usual, asked, overwrite))
    with claim as place:
        if resume and (finished := _finished(place.path, usual, training_plan(dataset, network, settings))):
            log(f"{finished.name} is finished, with these very settings: nothing to go on with")
            return finished if first else None
        probe, activations, extract_seconds = None, None, 0.0
        if settings.cached:
            origin = {"data": data, **splitting, "limits": asdict(limits)}
            activations, extract_seconds = _activations(
                dataset, network, settings, Path(cache_dir), origin if first else None, progress, log)
        elif STRATEGIES[settings.strategy].probe and first:
            probe, extract_seconds = _probe(data, network, splitting, Path(cache_dir), settings, progress)
        result = train(
            dataset, network, settings, run_folder=place.path, resume=resume, probe=probe, activations=activations,
            progress=progress, log=log,
        )
        if result is None:
            return None
        origin = {"name": dataset.name, "root": str(dataset.root), "data": data, **splitting}
        return save_finetuned(result, dataset, settings, place, origin, extract_seconds, network.label, asked,
                              activations)


def _finished(place: Path, usual: Path, plan: Mapping[str, Any]) -> Run | None:
    """Return the run that is to be gone on with if it is finished already; None where there is training left to do.

    Raises
    ------
    RunError
        If it is finished, but was made by another plan.
    """
    from .checkpoints import Checkpoints
    from .training import check_plan

    found = place if (place / "metrics.json").is_file() else usual
    if Checkpoints(place).records() or not (found / "metrics.json").is_file():
        return None
    run = Run.open(found.name, found.parent)
    asked = run.metrics.get("asked", {})
    if "finetune" not in asked:
        raise RunError(f"Cannot continue {found}: it was not made by this command. Use another --name.")
    images = run.metrics.get("trained_on", plan["images"])  # older runs do not tell
    check_plan({**asked["finetune"], "images": images, "classes": run.metrics["classes"],
                "backbone": asked["features"]}, plan, found)
    return run


def _activations(
    dataset: Dataset, backbone: Backbone, settings: FinetuneSettings, cache_dir: Path,
    origin: Mapping[str, Any] | None, progress: Progress, log: Callable[[str], object],
) -> tuple[Activations, float]:  # fmt: skip
    """Have the frozen blocks' activations in the cache; return where, and the seconds that they took, now or before.

    Without `origin`, wait until another process has seen to it.
    """
    from .activations import Activations
    from .cutting import below_training

    kept, shape = below_training(backbone, settings)
    path = cache_path(cache_dir, dataset.name, kept.name, kept.spec)
    found = Activations(path, kept.spec, kept.layer, shape)
    if origin is None:
        while not _is_complete(path, kept.spec, dataset):
            time.sleep(POLL)
        return found, 0.0
    done = extract_features(dataset, kept, Running(settings.device, workers=settings.workers or None),
                            cache_dir=cache_dir, origin=origin, progress=progress, tell=log)
    for line in done.notes:
        log(f"note: {line}")
    how = f"{done.computed} computed, {done.reused} reused" if done.computed else "all cached already"
    views = "the plain view alone, so without augmentation" if settings.views == 1 else (
        f"{settings.views} views ({settings.augmentation}), of which every epoch draws one; new ones are not made")
    log(f"training from {kept.layer} {' x '.join(map(str, shape))}: {done.rows} images ({how}), {views}")
    with done.open() as cache:
        return found, float(cache.meta.get("seconds") or 0)


def _is_complete(path: Path, spec: Spec, dataset: Dataset) -> bool:
    try:
        with FeatureCache.open(path, spec=spec) as cache:
            return not changes(cache, dataset)
    except CacheError:
        return False


def _probe(
    data: str, backbone: Backbone, splitting: Mapping[str, Any], cache_dir: Path, settings: FinetuneSettings,
    progress: Progress,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, float]:  # fmt: skip
    """Solve logistic regression on cached features, extracting them first if need be; None where a class is absent."""
    done = extract(data, backbone, cache_dir=cache_dir, device=settings.device, progress=progress, **splitting)
    with done.open() as cache:
        head: Any = fit_head(cache, "logistic", Training(seed=settings.seed)).head
        complete = len(head.classes_) == len(cache.classes)
        return ((head.coef_, head.intercept_) if complete else None), float(cache.meta.get("seconds") or 0)


def save_finetuned(
    result: Finetuned, dataset: Dataset, settings: FinetuneSettings, place: RunPlace, origin: Mapping[str, Any],
    extract_seconds: float, label: str, asked: Mapping[str, Any], activations: Activations | None = None,
) -> Run:  # fmt: skip
    from safetensors.torch import save_file

    from .training import images_digest

    scored = [(split, scores) for split, scores in result.scores.items()]
    indices = np.concatenate([scores.indices for _, scores in scored])
    scores = np.concatenate([scores.probabilities for _, scores in scored])
    labels, splits = dataset.labels[indices], dataset.splits[indices]
    metrics = {
        "name": place.path.name,
        "kind": "finetune",
        "dataset": dataset.name,
        "backbone": result.backbone.name,
        "features": label,
        "strategy": settings.strategy,
        "classes": list(dataset.classes),
        "splits": score_splits(splits, labels, scores),
        "seconds": seconds_of(extract_seconds, result.seconds),
        "trainable_parameters": result.trainable_parameters,
        "selection": result.selection,
        "best_epoch": result.best_epoch,
        "asked": asked,
        "told": settings.told,
        "trained_on": images_digest(dataset),
        **({"activations": activations.spec.sha256} if activations else {}),
        **({"mix": result.mix} if result.mix is not None else {}),
        **({"notes": [PROBE_WON]} if _probe_won(result) else {}),
        "skipped": len(result.failures),
    }

    def save(folder: Path) -> None:
        save_file({key: value.contiguous() for key, value in result.state.items()}, folder / NETWORK_FILE)
        ImageClassifier(result.backbone, linear_head(result.weight, result.bias), dataset.classes).save(folder)
        (folder / "history.json").write_text(json.dumps(result.history, indent=2) + "\n")

    return write_run(
        place.path,
        metrics=metrics,
        config={"dataset": origin, "backbone": description(result.backbone), "finetune": settings.to_dict(),
                "skipped": result.failures},
        predictions=prediction_rows([dataset.paths[index] for index in indices], splits, labels, scores,
                                    dataset.classes),
        save_weights=save,
        remark=place.remark,
    )


def _probe_won(result: Finetuned) -> bool:
    """Tell whether what is kept is the linear probe that training started from."""
    if result.mix is not None:
        return result.mix == 0
    return result.best_epoch == 0 and result.selection == "val"
