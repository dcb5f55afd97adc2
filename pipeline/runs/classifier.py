"""An image classifier: a backbone and a head, wherever each was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbones import Backbone, JoinedBackbone, as_described, from_description
from ..core.errors import DataError, PipelineError, RunError
from ..core.frames import Rows
from ..core.progress import Progress, shown, silent
from ..data import Limits, UnreadableImageError, decode, read_bytes
from ..data.files import DEFAULT_LIMITS
from ..engines import Embedder, Running, is_prepared
from ..evaluation import evaluate
from ..store import Spec
from .run import Run
from .scores import best_run

if TYPE_CHECKING:
    from ..heads import Head

FEWEST, MOST = 16, 64  # images handed to a worker at once: few, so that all cores have some, but whole batches


def of_run(fields: Mapping[str, Any], folder: Path, cache_dir: Path) -> Backbone | JoinedBackbone:
    """Find the backbone, or the several, that a run's ``config.toml`` describes.

    Raises
    ------
    WeightsError
        If the weights are gone, or are others than the run's.
    """
    if "joined" not in fields:
        backbone = as_described(fields, folder)
        return backbone if is_prepared(backbone.plain, cache_dir) else from_description(fields, folder)
    found = [of_run(part, folder, cache_dir) for part in fields["joined"]]
    return JoinedBackbone(tuple(part for one in found for part in one.parts))


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes
    ----------
    path : str
        The image's file, or its number where it came from memory.
    label : str or None
        The likeliest class; None for an image that cannot be read.
    prob : float or None
        Its probability.
    probabilities : dict of str to float
        Of every class.
    reason : str
        Why there is no label; empty otherwise.
    abstained : bool
        Whether the probability is below the one asked for, so that the label is no answer but the best guess.
    unfamiliar : bool or None
        Whether the image is unlike anything in training: its label then means little, however likely. None where the
        head has not learned to tell.
    possible : tuple of str or None
        The labels that hold the truth as often as the calibration promises, the likeliest first; None where the head
        is not calibrated.
    scores : dict of str to float, or None
        What the head gives every class, before that becomes a probability; None where it was not asked for.
    """

    path: str
    label: str | None
    prob: float | None
    probabilities: Mapping[str, float]
    reason: str = ""
    abstained: bool = False
    unfamiliar: bool | None = None
    possible: tuple[str, ...] | None = None
    scores: Mapping[str, float] | None = None


class ImageClassifier:
    """A backbone and a head that was trained on its features.

    Parameters
    ----------
    backbone : Backbone or JoinedBackbone
    head : scikit-learn classifier
        Knows class ids 0..K-1.
    classes : sequence of str, length K
    device, engine, batch_size, workers, cache_dir
        See `make_engine` and `Embedder`.
    limits : Limits
        What one image may cost.
    abstain_below : float
        Probability below which a prediction is marked as abstained.
    scores : bool
        Whether predictions tell raw scores too.

    Raises
    ------
    PipelineError
        If `abstain_below` is no probability.

    Examples
    --------
    >>> classifier = ImageClassifier.load("runs/pets")            # doctest: +SKIP
    >>> classifier.predict(["cat.jpg"])[0].label                   # doctest: +SKIP
    'cat'
    """

    def __init__(
        self,
        backbone: Backbone | JoinedBackbone,
        head: Any,
        classes: Sequence[str],
        *,
        device: str = "auto",
        engine: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        cache_dir: str | Path = "cache",
        limits: Limits = DEFAULT_LIMITS,
        abstain_below: float = 0.0,
        scores: bool = False,
    ):
        if not 0 <= abstain_below <= 1:
            raise PipelineError(f"Abstaining goes by a probability from 0 to 1, not {abstain_below:g}.")
        self.abstain_below = abstain_below
        self.scores = scores
        self.backbone = backbone
        self.head = head
        self.classes = tuple(classes)
        self.limits = limits
        self._running, self._cache_dir = Running(device, engine, batch_size, workers), Path(cache_dir)

    @cached_property
    def _embedders(self) -> list[Embedder]:
        return [Embedder.of(part.plain, self._running, self._cache_dir) for part in self.backbone.parts]

    @property
    def notes(self) -> list[str]:
        """Remarks for the user on how the backbone runs."""
        return list(dict.fromkeys(note for embedder in self._embedders for note in embedder.engine.notes))

    @property
    def calibrated(self) -> bool:
        """Whether the head's probabilities were made honest, and it knows sets of labels and strange images."""
        return hasattr(self.head, "set_threshold_") and hasattr(self.head, "familiarity_")

    @classmethod
    def load(cls, run: str | Path | Run, runs_dir: Path = Path("runs"), **running: Any) -> ImageClassifier:
        """Load the classifier of a run, by the run's name or folder.

        Raises
        ------
        RunError
            If the run is missing or incomplete.
        WeightsError
            If the backbone's weights are gone, or are not those that the head was trained on.
        """
        from ..heads import load_head

        opened = run if isinstance(run, Run) else Run.open(run, runs_dir)
        head, metadata = load_head(opened.path)
        backbone = of_run(opened.config()["backbone"], opened.path, Path(running.get("cache_dir", "cache")))
        if metadata.get("spec_sha256") != backbone.spec.sha256:
            fields = Spec(metadata["spec"]).differences(backbone.spec) if "spec" in metadata else []
            how = "; ".join(f"{field}: {ours!r}, not {theirs!r}" for field, theirs, ours in fields)
            raise RunError(f"{str(opened.path)!r} holds a head that was trained on other features than its config.toml "
                           f"names{f' ({how})' if how else ''}. Train again.")
        return cls(backbone, head, metadata["class_names"], **running)

    def save(self, folder: Path) -> None:
        """Write the head into a run folder. The backbone's own weights are named in `config.toml`, not copied."""
        from ..heads import save_head

        save_head(self.head, folder, metadata_of(self.classes, self.backbone.spec))

    def predict(
        self, images: Iterable[Any], progress: Progress | bool = silent, *, tta: bool = False
    ) -> Rows[Prediction]:
        """Classify images.

        Parameters
        ----------
        images : iterable of str, Path, bytes, PIL image or ndarray, or one of these
            Files, whole image files in memory, or pixels: (H, W, 3) uint8. All take the same way.
        tta : bool
            Average probabilities over the backbone's views of each image, the plain one included (test-time
            augmentation), instead of looking at the plain one alone.

        Returns
        -------
        list of Prediction
            One an image, in order; unreadable images have a reason instead of a label. Its `to_frame` gives a data
            frame.

        Raises
        ------
        PipelineError
            If views are to be averaged, but the backbone has the plain one alone, or scores were asked for.
        """
        progress = shown(progress)
        images = [images] if _is_one(images) else list(images)
        with progress(total=len(images), desc="predict", unit="image") as bar:
            found = Rows[Prediction]()
            for prediction in self.stream(images, tta=tta):
                found.append(prediction)
                bar.update(1)
        return found

    def evaluate(self, images: Iterable[Any], labels: Sequence[str], progress: Progress = silent) -> dict[str, Any]:
        """Score predictions for labelled images.

        Parameters
        ----------
        images
            As `predict` takes them.
        labels : sequence of str
            The class of each.

        Returns
        -------
        dict
            As `pipeline.evaluate` returns it, and ``unreadable`` (paths and reasons) and ``unknown`` (classes that this
            classifier does not know and their images): both are left out of all figures.

        Raises
        ------
        DataError
            If there are not as many labels as images, or none is left to score.
        """
        predictions = self.predict(images, progress)
        if len(predictions) != len(labels):
            raise DataError(f"There are {len(predictions)} images and {len(labels)} labels.")
        unknown = Counter(label for label in labels if label not in self.classes)
        pairs = zip(predictions, labels, strict=True)
        kept = [(self.classes.index(label), list(found.probabilities.values())) for found, label in pairs
                if found.probabilities and label not in unknown]
        if not kept:
            raise DataError(f"None of these {len(labels)} images can be read and is of a class that is known: "
                            f"{', '.join(self.classes[:8])}.")
        truth, scored = map(np.array, zip(*kept, strict=True))
        unreadable = {found.path: found.reason for found in predictions if found.label is None}
        return {**evaluate(truth, scored), "unknown": dict(unknown), "unreadable": unreadable}

    def stream(self, images: Iterable[Any], *, tta: bool = False) -> Iterator[Prediction]:
        """Classify images one after the other, as `predict`, holding only a few in memory."""
        if tta and (len(self.backbone.parts) > 1 or self.backbone.parts[0].views.count == 1):
            raise PipelineError("There are no views to average over: the head was trained on plain images alone. "
                                "Extract and train with --views 4, say, or leave --tta out.")
        if tta and self.scores:
            raise PipelineError("Raw scores are one view's, and --tta averages probabilities: leave one of them out.")

        def classify(job: tuple[int, list[Any]]) -> list[Prediction]:
            first, chunk = job
            rows, failures = self._embedded(chunk, tta)
            names = [name_of(image, first + index) for index, image in enumerate(chunk)]
            return list(self._predictions(names, rows, failures))

        size = min(MOST, max(FEWEST, self._embedders[0].batch_size))
        for predictions in self._embedders[0].map(classify, _chunks(images, size)):
            yield from predictions

    def _embedded(self, chunk: list[Any], tta: bool) -> tuple[np.ndarray, dict[int, str]]:
        """Return the features of the images that each backbone can read, and why it cannot read the others."""
        found, failures = [], dict[int, str]()
        for part, embedder in zip(self.backbone.parts, self._embedders, strict=True):
            seen = part if tta else part.plain
            preprocess = embedder.preprocess(seen.preprocessing)

            def pixels(index: int, preprocess: Any = preprocess) -> Any:
                return load_image(chunk[index], self.limits, preprocess)

            rows, failed = embedder.embed(range(len(chunk)), pixels, views=seen.views.count)
            found.append(([index for index in range(len(chunk)) if index not in failed], rows))
            failures = failed | failures
        kept = [[index not in failures for index in indices] for indices, _ in found]
        return np.hstack([rows[own] for own, (_, rows) in zip(kept, found, strict=True)]), failures

    def _predictions(self, names: list[str], rows: np.ndarray, failures: dict[int, str]) -> Iterator[Prediction]:
        scored = self._scored(rows) if len(rows) else iter(())
        for index, name in enumerate(names):
            if index in failures:
                yield Prediction(name, None, None, {}, failures[index])
            else:
                yield replace(next(scored), path=name)

    def _scored(self, rows: np.ndarray) -> Iterator[Prediction]:
        """Yield what the head says of each row, (N, D) or (N, V, D) to average over views, still without its path."""
        from ..heads import prediction_sets, probabilities
        from ..heads.scores import plain

        found = probabilities(self.head, rows, len(self.classes))
        raw = self.head.scores(rows).tolist() if self.scores else None
        known_classes = [self.classes[label] for label in self.head.classes_]
        strange = self.head.familiarity_.unlike(plain(rows)) if self.calibrated else None
        # the sets' coverage was found on plain images: averages are other probabilities
        known = self.calibrated and rows.ndim == 2
        sets = prediction_sets(found, self.head.set_threshold_) if known else None
        for index, own in enumerate(found):
            order = np.argsort(-own, kind="stable").tolist()
            prob = float(own[order[0]])
            yield Prediction(
                "", self.classes[order[0]], prob, dict(zip(self.classes, own.tolist(), strict=True)),
                abstained=prob < self.abstain_below,
                unfamiliar=None if strange is None else bool(strange[index]),
                possible=None if sets is None else tuple(self.classes[label] for label in order if sets[index, label]),
                scores=None if raw is None else dict(zip(known_classes, raw[index], strict=True)),
            )


def predict(
    images: Any,
    run: str | Path | Run | None = None,
    *,
    tta: bool = False,
    runs_dir: str | Path = "runs",
    cache_dir: str | Path = "cache",
    progress: Progress | bool = silent,
) -> Rows[Prediction]:
    """Classify images with a run.

    Parameters
    ----------
    images, tta
        As `ImageClassifier.predict` takes them.
    run : str, path or Run, optional
        By name below `runs_dir`, or folder; by default the most accurate of the newest data set, see
        `pipeline.runs.scores.best_run`.

    Returns
    -------
    list of Prediction
        One an image, in order.
    """
    chosen = best_run(Path(runs_dir))[0] if run is None else run
    return ImageClassifier.load(chosen, Path(runs_dir), cache_dir=cache_dir).predict(images, progress, tta=tta)


def metadata_of(classes: Sequence[str], spec: Spec) -> dict[str, Any]:
    """Return what is saved with a head, so that it is never applied to features that it does not know."""
    return {"class_names": list(classes), "spec_sha256": spec.sha256, "spec": spec.fields}


def linear_head(weight: np.ndarray, bias: np.ndarray) -> Head:
    """Return the head of a fine-tuned network, so that both kinds of run end in the same type.

    Parameters
    ----------
    weight, bias : (K, D) and (K,) arrays
        For features as they come out of the backbone.
    """
    from ..heads import LinearHead
    from ..heads.scaling import Scaler

    head = LinearHead(scaling="none")
    head.classes_, head.n_features_in_ = np.arange(len(weight)), weight.shape[1]
    head.coef_, head.intercept_ = weight.astype(np.float64), bias.astype(np.float64)
    head.scaler_, head.temperature_ = Scaler("none"), 1.0
    return head


def load_image(
    image: Any, limits: Limits = DEFAULT_LIMITS, decode: Callable[[bytes, Limits], Any] = decode
) -> Any:
    """Return a path's, bytes', array's or PIL image's pixels, by one set of rules: what `decode` makes of its file.

    Raises
    ------
    UnreadableImageError
        If there is no image in it.
    DataError
        If it is none of these things.
    """
    from PIL import Image

    if isinstance(image, (str, Path)):
        return decode(read_bytes(image, limits), limits)
    if isinstance(image, bytes):
        return decode(image, limits)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UnreadableImageError(f"an array of {image.dtype} and shape {image.shape}, not uint8 (H, W, 3)")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        # through a lossless file, so that orientation, transparency and depth follow the same rules
        buffer = BytesIO()
        image.save(buffer, "TIFF" if image.mode in ("CMYK", "F", "LAB", "YCbCr") else "PNG", exif=image.getexif())
        return decode(buffer.getvalue(), limits)
    raise DataError(f"Cannot read an image from {type(image).__name__}: give a path, bytes, PIL image or uint8 array.")


def _is_one(images: Any) -> bool:
    """Tell whether this is one image: a path, a file's content, an array of pixels, an image of Pillow's."""
    array = isinstance(images, np.ndarray) and images.ndim < 4
    return array or isinstance(images, (str, Path, bytes)) or hasattr(images, "getexif")


def name_of(image: Any, number: int) -> str:
    """Return the path of an image, or its number where it has none."""
    return str(image) if isinstance(image, (str, Path)) else str(number)


def _chunks(images: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    iterator, first = iter(images), 0
    while chunk := list(islice(iterator, size)):
        yield first, chunk
        first += len(chunk)
