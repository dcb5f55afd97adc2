"""Fine-tuning from start to end: set up, train with checkpoints, choose the weights, score them."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backbones import Backbone
from ..backbones.backbone import random_weights
from ..core.errors import PipelineError, RunError
from ..core.progress import Progress, silent
from ..data import Dataset
from ..engines import Embedder, TorchEngine, choose_device
from ..engines.memory import kept_memory
from ..store import FeatureCache
from .activations import Activations, CachedActivations
from .batches import Decoder
from .checkpoints import Checkpoints, record_of, restore, tensors_of
from .device_batches import decoder_for
from .distributed import World, world
from .interrupts import deferred
from .network import Classifier, choose_precision, feature_length, find_blocks
from .result import Finetuned, features_above, features_of, labelled, score, score_above, solve_probe, with_weights
from .settings import STRATEGIES, FinetuneSettings
from .trainer import Tensors, Trainer

DEFAULTS = FinetuneSettings()
MIXES = np.linspace(0, 1, 11)
Probe = tuple[np.ndarray, np.ndarray]


@contextmanager
def tensorboard(folder: str) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yield what takes an epoch's line of the history; without a folder it does nothing.

    Raises
    ------
    PipelineError
        If the package tensorboard is not installed, or the folder cannot be written.
    """
    if not folder:
        yield lambda line: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)
    except ImportError as error:
        raise PipelineError(f"--tensorboard needs the package tensorboard: {sys.executable} -m pip install tensorboard"
                            ) from error
    except OSError as error:
        raise PipelineError(f"Cannot write to the TensorBoard folder {folder!r}: {error.strerror or error}.") from error

    def write(line: dict[str, Any]) -> None:
        for name in line.keys() - {"epoch"}:
            writer.add_scalar(name, line[name], line["epoch"])
        writer.flush()

    with writer:
        yield write


def train(
    dataset: Dataset,
    backbone: Backbone,
    settings: FinetuneSettings = DEFAULTS,
    *,
    run_folder: Path | None = None,
    resume: bool = False,
    probe: Probe | None = None,
    activations: Activations | None = None,
    progress: Progress = silent,
    log: Callable[[str], object] = lambda line: None,
) -> Finetuned | None:
    """Fine-tune a network.

    Parameters
    ----------
    dataset : Dataset
        Its labelled train images are trained on, and its val images choose the epoch. Broken images are left out.
    backbone : Backbone
    settings : FinetuneSettings
    run_folder : Path, optional
        Where checkpoints are kept (in ``checkpoints/``); without it there are none.
    resume : bool
        Go on from the newest checkpoint, if there is one.
    probe : (K, D) array, (K,) array, optional
        Weight and bias, for raw features, of the probe that `lp-ft` and `interpolate` start from; solved here if
        it is not given.
    activations : Activations, optional
        With the setting `cached`: where the frozen blocks' activations are. The file is opened once all processes are
        there, so that the first may have been making it.
    progress : Progress
    log : callable
        Takes a line for the user, an epoch's for instance.

    Returns
    -------
    Finetuned or None
        None in all processes but the first, where several train together.

    Raises
    ------
    DataError, PipelineError
        If the data or settings cannot be trained with; or the loss becomes no number; or memory is too small for
        one image; or another process dies.
    KeyboardInterrupt
        After SIGINT or SIGTERM, once the step is done and a checkpoint written; its message says how to go on.
    """
    strategy = STRATEGIES[settings.strategy]
    if strategy.random:
        backbone = replace(backbone, weights=random_weights(backbone.architecture, settings.seed))
    device = choose_device(settings.device)
    with world(device) as place, _torch_state(settings), kept_memory(device.type == "cpu"):
        if not place.main:
            progress, log = silent, lambda line: None
        checkpoints = Checkpoints(run_folder) if run_folder else None
        if checkpoints and not resume and checkpoints.records():
            raise RunError(f"{run_folder} holds an unfinished training. Continue it with --resume, choose another "
                           f"--name, or delete {checkpoints.folder}.")
        decoder = _decoder(dataset, backbone, settings, device, activations)
        try:
            model = _model(backbone, dataset, settings, device, place)
            if isinstance(decoder, CachedActivations) and activations:
                model.cut(activations.layer, activations.shape)
                mixing = torch.tensor(decoder.mixing, device=device)
                place.share([mixing])  # each has measured its own memory
                decoder.mixing = int(mixing)
            if strategy.probe and place.main:
                model.start_head(*(probe or _probe(model, decoder, dataset, backbone, settings, progress)))
            place.share(model.head.state_dict().values())
            precision = choose_precision(settings.precision, device)
            plan = training_plan(dataset, backbone, settings)
            with tensorboard(settings.tensorboard if place.main else "") as track:
                trainer = Trainer(model, dataset, decoder, settings, precision, place, log, track)
                start = trainer.copied()
                if checkpoints and resume:
                    _continue(trainer, checkpoints, plan, log)
                _run(trainer, checkpoints, plan, progress, log)
                mix = _settle(trainer, start, log)
            return _outcome(trainer, backbone, mix, progress) if place.main else None
        finally:
            decoder.close()


def _decoder(
    dataset: Dataset, backbone: Backbone, settings: FinetuneSettings, device: torch.device,
    activations: Activations | None,
) -> Decoder | CachedActivations:  # fmt: skip
    if activations is None:
        return decoder_for(dataset, backbone.transform, settings, device)
    return CachedActivations(FeatureCache.open(activations.path, spec=activations.spec), dataset, settings, device)


def _probe(
    model: Classifier, decoder: Decoder | CachedActivations, dataset: Dataset, backbone: Backbone,
    settings: FinetuneSettings, progress: Progress,
) -> Probe:  # fmt: skip
    """Solve logistic regression on the features of the training images, as they are before training."""
    device, indices = model.head.weight.device, labelled(dataset, "train")
    if isinstance(decoder, CachedActivations):
        with progress(total=len(indices), desc="probe", unit="image") as bar:
            return solve_probe(dataset, *features_above(model, decoder, indices, bar.update)[:2])
    embedder = Embedder(TorchEngine(backbone, str(device)), workers=settings.workers or None)
    with progress(total=len(indices), desc="probe", unit="image") as bar:
        return solve_probe(dataset, *features_of(embedder, backbone, dataset, indices, bar.update)[:2])


def _model(
    backbone: Backbone, dataset: Dataset, settings: FinetuneSettings, device: torch.device, place: World
) -> Classifier:
    network = backbone.network()
    length = feature_length(network, backbone.transform)
    names = [block.name for block in find_blocks(network)]
    if any(STRATEGIES[settings.strategy].rates(names, settings, settings.epochs - 1)) and not settings.freeze_norm:
        network.network = place.synchronise_norms(network.network, device)
    model = Classifier(network, length, len(dataset.classes), backbone.transform)
    return model.placed(device, choose_precision(settings.precision, device))


@contextmanager
def _torch_state(settings: FinetuneSettings) -> Iterator[None]:
    """Leave torch's random numbers and settings as they were found."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(settings.deterministic or deterministic)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)


def images_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of what is trained on: the images' contents, labels and splits, in their order."""
    content = hashlib.sha256(dataset.digests.tobytes())
    content.update(dataset.labels.tobytes())
    content.update(json.dumps(dataset.splits.tolist()).encode())
    return content.hexdigest()


def training_plan(dataset: Dataset, backbone: Backbone, settings: FinetuneSettings) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be continued."""
    return {**settings.deciding, "images": images_digest(dataset), "classes": list(dataset.classes),
            "backbone": backbone.spec.sha256}


def check_plan(was: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with what was made by another `training_plan`.

    Raises
    ------
    RunError
        Naming what differs.
    """
    changed = [name for name in now if was.get(name) != now[name]]
    if changed:
        what = ", ".join(f"{name} {was.get(name)!r}, now {now[name]!r}" for name in changed)
        raise RunError(f"Cannot continue {where}: it was made with {what}. Use the same settings and data, "
                       "or start anew under another --name.")


def _continue(trainer: Trainer, checkpoints: Checkpoints, plan: dict[str, Any], log: Callable[[str], object]) -> None:
    found = checkpoints.newest()
    if found is None:
        log("no checkpoint to continue from: starting at the beginning")
        return
    tensors, record, remarks = found
    for remark in remarks:
        log(f"{remark} Using the one before it.")
    check_plan(record["plan"], plan, checkpoints.folder)
    restore(trainer, tensors, record)
    log(f"continuing after epoch {trainer.epoch}" + (f", step {trainer.step}" if trainer.step else ""))


def _run(trainer: Trainer, checkpoints: Checkpoints | None, plan: dict[str, Any], progress: Progress,
         log: Callable[[str], object]) -> None:
    """Train to the end, with checkpoints and a bar."""
    settings, written = trainer.settings, time.monotonic()

    def save() -> bool:
        nonlocal written
        written = time.monotonic()
        if checkpoints is None or not trainer.world.main:
            return False
        trainer.stepper.look()
        try:
            checkpoints.save(tensors_of(trainer), {**record_of(trainer), "plan": plan})
        except OSError as error:
            log(f"cannot write a checkpoint: {error.strerror or error} ({checkpoints.folder}); going on without")
            return False
        return True

    def after_step(images: int) -> None:
        bar.update(images)
        stopping = trainer.world.any(interrupt.asked, trainer.device, trainer.step)
        due = time.monotonic() - written > 60 * settings.checkpoint_minutes
        if not images or stopping or due:
            saved = save()
        if stopping:
            raise KeyboardInterrupt(_where(trainer, saved))

    total = len(trainer.train_indices) * (settings.epochs - trainer.epoch) - trainer.step * settings.batch_size
    with deferred() as interrupt, progress(total=total, desc="finetune", unit="image") as bar:
        trainer.run(after_step)


def _where(trainer: Trainer, saved: bool) -> str:
    place = f"interrupted after epoch {trainer.epoch}" + (f", step {trainer.step}" if trainer.step else "")
    return f"{place}; continue with --resume" if saved else f"{place}; nothing was saved"


def _settle(trainer: Trainer, start: Tensors, log: Callable[[str], object]) -> float | None:
    """Give the model the weights that are kept; return the mix, where the strategy mixes."""
    final = trainer.final()
    trainer.put(final)
    if not trainer.strategy.interpolate:
        return None
    if not len(trainer.val_indices):
        raise PipelineError("The strategy 'interpolate' chooses the mix on val images, and there are none. "
                            "Use --strategy lp-ft.")
    found = []
    for mix in MIXES.tolist():
        trainer.put(mixed(start, final, mix))
        loss, accuracy = trainer.validate()
        found.append((accuracy, -loss, mix))
        log(f"mix {mix:.1f}  val loss {loss:.4f} accuracy {accuracy:.4f}")
    best = max(found)[2]
    trainer.put(mixed(start, final, best))
    return best


def mixed(start: Tensors, end: Tensors, share: float) -> Tensors:
    """Return weights between `start` and `end`, with `share` of `end`; counters are those of `end`.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    return {
        name: start[name].lerp(tensor, share) if tensor.is_floating_point() else tensor for name, tensor in end.items()
    }


def _outcome(trainer: Trainer, backbone: Backbone, mix: float | None, progress: Progress) -> Finetuned:
    settings, model = trainer.settings, trainer.model
    tensors = model.backbone.network.state_dict()
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    weight, bias = (tensor.detach().cpu().numpy().copy() for tensor in (model.head.weight, model.head.bias))
    tuned = with_weights(backbone, state)
    if isinstance(trainer.decoder, CachedActivations):
        scores, failures = score_above(model, trainer.decoder, weight, bias, trainer.dataset, progress)
    else:
        scores, failures = score(tuned, weight, bias, trainer.dataset, str(trainer.device), settings.workers, progress)
    failures = trainer.decoder.failures | failures
    return Finetuned(
        backbone=tuned, state=state, weight=weight, bias=bias, history=trainer.history,
        best_epoch=trainer.best_epoch if trainer.selects else trainer.epoch,
        selection="val" if trainer.selects else "last", scores=scores,
        failures={trainer.dataset.paths[index]: reason for index, reason in sorted(failures.items())},
        trainable_parameters=trainer.trainable_parameters, seconds=trainer.seconds,
        precision=str(trainer.precision).removeprefix("torch."), device=str(trainer.device), mix=mix,
        settings=settings.to_dict(),
    )
