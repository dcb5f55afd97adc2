"""Training heads on a cache: as they are, with settings chosen fairly, several times over, or streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbones.layer_names import POOLED
from ..core.errors import CacheError, UnknownNameError
from ..core.machine import available_memory
from ..core.progress import Progress, silent
from ..evaluation.comparison import Paired, corrected
from ..evaluation.metrics import evaluate
from ..store import FeatureCache

if TYPE_CHECKING:
    from ..heads import Head
    from ..heads.sweep import SweepResult

SHARE = 0.75  # of the memory that is available now, where no limit is given
COPIES = 4  # of the features as float32 while a head trains: as read, scaled, centred, and temporaries
HELD_OUT = ("test", "val")  # what a figure is taken on: the first of these that there is
CHUNK = 8192  # rows read at a time
UNREACHED = "{}: its optimum was not reached; give a stronger penalty (a smaller --C), or --set max_iter=N with more."
NOTHING_RANDOM = "{}: nothing in it is random, so every seed gives the same head, and --repeats trained it once."


def memory_limit(max_memory: int | None) -> int:
    """Return the bytes that may be taken: as many as were asked for, or three quarters of what is available."""
    return int(SHARE * available_memory()) if max_memory is None else max_memory


def must_stream(cache: FeatureCache, max_memory: int | None) -> bool:
    """Tell whether training on a cache's train and val rows at once would take more memory than it may.

    Parameters
    ----------
    cache : FeatureCache
    max_memory : int or None
        Bytes; by default as `memory_limit`.
    """
    values = (len(cache.indices("train")) + len(cache.indices("val"))) * math.prod(cache.shape[1:])
    return COPIES * 4 * values > memory_limit(max_memory)


def require_room_for_sums(cache: FeatureCache, max_memory: int | None) -> None:
    """Refuse features so wide that the (D, D) matrices of most streamed heads would not fit.

    Raises
    ------
    CacheError
    """
    most = memory_limit(max_memory)
    width = cache.shape[-1]
    if COPIES * 8 * width**2 > most:
        need, may = f"{COPIES * 8 * width**2 / 1e9:.1f} GB with copies", f"{most / 1e9:.1f} GB"
        raise CacheError(f"Rows of {width} features need matrices of {width} x {width}, {need}: more than the {may} "
                         "that may be used. Take linear, nearest-centroid or gaussian-nb, or raise --max-memory.")


@dataclass(frozen=True)
class Sweep:
    """How a head's settings are chosen. The test split takes no part.

    Attributes
    ----------
    grid : mapping from setting to values, optional
        All combinations are tried; by default the head's own grid.
    on : {'cv', 'val'}
        Cross-validation on the training rows, or the val split.
    folds : int
    metric : str
        ``accuracy``, ``balanced_accuracy``, ``macro_f1`` or ``log_loss``.
    one_standard_error : bool
        Of the candidates within one standard error of the best take the simplest, not the one of least log loss.
    """

    grid: Mapping[str, Sequence[Any]] | None = None
    on: str = "cv"
    folds: int = 5
    metric: str = "accuracy"
    one_standard_error: bool = False

    def __post_init__(self) -> None:
        if self.on not in ("cv", "val"):
            raise UnknownNameError("way to choose", self.on, ("cv", "val"))


@dataclass(frozen=True)
class Training:
    """How a head is trained.

    Attributes
    ----------
    settings : mapping
        Of the head; see `pipeline.heads.make_head`.
    seed : int
    sweep : Sweep, optional
        Choose further settings. Without it, a head that is trained by epochs sees val, to keep the best of them.
    repeats : int
        Train with so many seeds and note the spread; the first one's head is returned. A head in which nothing is
        random is trained once, and its notes say so.
    tta : bool
        Predict by the mean over the views of an image.
    max_memory : int, optional
        Bytes that training may take; by default three quarters of what is available. Rows that would take more are
        streamed from the file.
    scheduler : str, optional
        Address of a Dask cluster that does a sweep's fits.
    folder : Path, optional
        Where a sweep keeps finished fits.
    jobs : int
        Processes of a sweep; -1 is one a core.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sweep: Sweep | None = None
    repeats: int = 1
    tta: bool = False
    max_memory: int | None = None
    scheduler: str | None = None
    folder: Path | None = None
    jobs: int = -1

    @property
    def asked(self) -> dict[str, Any]:
        """What makes a run another one, as JSON values."""
        sweep = None if self.sweep is None else asdict(self.sweep)
        return {"settings": dict(self.settings), "seed": self.seed, "sweep": sweep, "repeats": self.repeats,
                "tta": self.tta}

    @property
    def told(self) -> str:
        """What was asked for besides the defaults, in a few words."""
        words = [f"{name}={value}" for name, value in self.settings.items()]
        if self.sweep is not None:
            grid = [] if self.sweep.grid is None else ["of", "+".join(self.sweep.grid)]
            changed = [f"by {self.sweep.metric}"] if self.sweep.metric != Sweep.metric else []
            words.append(" ".join(["sweep", *grid, *changed, *(["on val"] if self.sweep.on == "val" else [])]))
        words += [f"seed={self.seed}"] if self.seed else []
        return ", ".join(words + ([f"repeats={self.repeats}"] if self.repeats > 1 else []))

    def head(self, name: str, more: int = 0, **chosen: Any) -> Head:
        """Return an unfitted head with these settings, those chosen besides, and the seed that is so many later."""
        from ..heads import make_head

        return make_head(name, seed=self.seed + more, **{**self.settings, **chosen})


@dataclass(frozen=True)
class FittedHead:
    """A trained head, and what its training took.

    Attributes
    ----------
    name : str
        As in `HEADS`.
    head : Head
    settings : dict
        Those that were given or chosen.
    seconds : float
        The search for settings included.
    selection : {'val', 'cv', 'last', 'none'}
        How settings, or the epoch, were chosen. A figure on val is optimistic after `val`; `none` is that of a head
        without epochs whose settings were given, or its defaults.
    candidates : list of dict
        What a sweep tried, a row a candidate.
    choice : dict
        What a sweep chose, or the head itself, see `SweepResult` and `Head.choice_`, with a `sentence`; empty where
        nothing was chosen.
    repeats : dict
        Of each split, `accuracies` over several seeds with their `mean` and `sd`; empty for one seed.
    calibration : dict
        How its probabilities were made honest, see `pipeline.stage_two.calibrate`; empty where they were not.
    streamed : bool
        Whether rows were read from the cache at every walk, because they do not fit into memory.
    tta : bool
        Whether its predictions are averaged over the views of an image.
    views : dict
        What training on several views gained, see `gain_of_views`; empty for one view.
    layers : dict
        Which of several layers it uses and why, see `choose_groups`; empty where it did not choose.
    notes : tuple of str
        Remarks for the user, one line each.
    """

    name: str
    head: Head
    settings: dict[str, Any]
    seconds: float
    selection: str
    candidates: list[dict[str, Any]] = field(default_factory=list)
    choice: dict[str, Any] = field(default_factory=dict)
    repeats: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    streamed: bool = False
    tta: bool = False
    views: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def fit_head(
    cache: FeatureCache, name: str, training: Training = Training(), progress: Progress = silent
) -> FittedHead:
    """Train a head on a cache's train split, on all views of its images.

    Parameters
    ----------
    cache : FeatureCache
    name : str
        As in `HEADS`.
    training : Training

    Raises
    ------
    CacheError
        If there is nothing to train on, or to choose on, no views to average over, or rows would have to be streamed
        and cannot.
    """
    if training.tta and cache.views == 1:
        raise CacheError(f"{cache.path} holds the plain view of each image alone: there is nothing to average over. "
                         "Extract with --views 4, say, and train with the same, or leave --tta out.")
    begin = time.perf_counter()
    training, layers = _for_layers(cache, name, training)
    return replace(_fitted(cache, name, training, begin, progress), layers=layers)


def _for_layers(cache: FeatureCache, name: str, training: Training) -> tuple[Training, dict[str, Any]]:
    """Return the training for features of several layers: which are used is chosen, or all are standardised.

    Returns
    -------
    Training
    dict
        What was chosen, see `choose_groups`; empty of heads that do not choose.
    """
    from ..heads import HEADS

    groups, known = cache.meta.get("groups"), HEADS[name].settings
    if not groups or training.settings.keys() & {"groups", "scaling"}:
        return training, {}
    if "groups" not in known:
        usual = {"scaling": "standardize"} if known.get("scaling") == "none" else {}
        return replace(training, settings={**training.settings, **usual}), {}
    from ..heads.folds import some_of
    from ..heads.groups import MOST_ROWS, choose_groups

    train = cache.indices("train")
    _require_two_classes(cache, cache.labels[train])
    rows = some_of(train, MOST_ROWS, training.seed)
    names = [one["layer"] for one in groups]
    chosen, report = choose_groups(
        cache.read_rows(rows, view=0), cache.labels[rows], names, [one["columns"] for one in groups],
        POOLED if POOLED in names else names[-1], training.seed)
    return replace(training, settings={**training.settings, "groups": [list(one) for one in chosen]}), report


def _fitted(cache: FeatureCache, name: str, training: Training, begin: float, progress: Progress) -> FittedHead:
    """Train a head as `fit_head` does, once its columns are known."""
    if must_stream(cache, training.max_memory):
        with progress(desc="Streaming", unit="row") as bar:
            found, times = _streamed(cache, name, training, bar.update)
        return replace(found, seconds=(time.perf_counter() - begin) / times)
    X, y = training_rows(cache)
    candidates: list[dict[str, Any]] = []
    if training.sweep is None:
        fitted = _fit(cache, name, training.head(name), X, y)
        selection, choice = _chosen(fitted)
    else:
        result = _swept(cache, name, X, y, training, training.sweep, progress)
        fitted, selection, candidates, choice = result.head, result.selection, result.rows, result.choice
    chosen = {**training.settings, **choice.get("settings", {})}
    times = _times(fitted, training.repeats)
    heads = [fitted] + [_fit(cache, name, training.head(name, more, **chosen), X, y) for more in range(1, times)]
    spread = _spread(cache, heads, training.tta)
    seconds = (time.perf_counter() - begin) / (times if training.sweep is None else 1)
    gain = {}
    if cache.views > 1:
        gain = gain_of_views(cache, _fit(cache, name, training.head(name, **chosen), X[:, 0], y), fitted)
    return FittedHead(name, fitted, {**chosen, "seed": training.seed}, seconds, selection, candidates, said(choice),
                      spread, tta=training.tta, views=gain, notes=_remarks(name, fitted, training.repeats))


def _times(head: Head, repeats: int) -> int:
    """Return how often a head is trained: with another seed only where that gives another head."""
    return max(1, repeats) if head.random else 1


def _remarks(name: str, head: Head, repeats: int) -> tuple[str, ...]:
    """Return what the user should know of a trained head."""
    return ((NOTHING_RANDOM.format(name),) if repeats > 1 and not head.random else ()) + (
        () if getattr(head, "converged_", True) else (UNREACHED.format(name),))


def _chosen(head: Head) -> tuple[str, Mapping[str, Any]]:
    """Return how a head chose its epoch or a setting in training, and what; of one that did not, 'none' and {}."""
    return getattr(head, "selection_", "none"), getattr(head, "choice_", {})


def said(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice with a `sentence` that tells it; {} of {}."""
    if not choice:
        return {}
    settings = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in choice["settings"].items())
    of, metric = f"of {choice['candidates']} candidates", choice["metric"].replace("_", " ")
    where = "on val" if choice["on"] == "val" else f"in {choice['folds']}-fold cross-validation on train"
    if choice["rule"] == "best":
        how = f"the least {metric} {of}, each training image left out in turn"
    elif choice["rule"] == "strongest":
        how = (f"the strongest penalty {of} whose {metric}, on {choice['n']:,} training images left out, is within one "
               "standard error of the best")
    else:
        taken = "the simplest" if choice["rule"] == "simplest" else "the least log loss"
        without = choice["without_figures"]
        how = (f"{taken} of the {choice['in_reach']} {of} within one standard error of the best {metric}, {where}"
               + (f"; {without} without figures, because their optimum was not reached" if without else ""))
    return {**choice, "sentence": f"{settings}: {how}"}


def training_rows(cache: FeatureCache) -> tuple[np.ndarray, np.ndarray]:
    """Return the train split's features, (n, D) or (n, V, D) with views, and labels (n,).

    Raises
    ------
    CacheError
        If there are not two classes to tell apart.
    """
    X, y = cache.split("train")
    _require_two_classes(cache, y)
    return X, y


def _require_two_classes(cache: FeatureCache, y: np.ndarray) -> None:
    if len(np.unique(y)) < 2:
        raise CacheError(f"{cache.path} has {len(y)} labelled training images, of {len(np.unique(y))} classes: "
                         "a classifier needs two classes at least.")


def _streamed(
    cache: FeatureCache, name: str, training: Training, done: Callable[[int], object]
) -> tuple[FittedHead, int]:
    """Train a head on rows that are read anew at every walk over them; tell also how often it was trained."""
    from ..heads import HEADS

    size = f"{cache.path} does not fit into memory ({4 * math.prod(cache.shape) / 1e9:.1f} GB as float32)"
    if not HEADS[name].streams:
        can = ", ".join(known for known in HEADS if HEADS[known].streams)
        raise CacheError(f"{size}, and {name} needs all rows at once. These do not: {can}. Or raise --max-memory.")
    if training.sweep is not None:
        raise CacheError(f"{size}, and a sweep reads it too often. Give settings (--C, --set), or raise --max-memory.")
    if len(cache.shape) == 3:
        raise CacheError(f"{size}, and views are not streamed. Raise --max-memory, or extract without --views.")
    if HEADS[name].head_class.squares or training.settings.get("scaling") == "pca-whiten":
        require_room_for_sums(cache, training.max_memory)
    train, val = cache.indices("train"), cache.indices("val")
    y = cache.labels[train]
    _require_two_classes(cache, y)
    held_out = (_rows(cache, val, done), cache.labels[val]) if HEADS[name].needs_torch and len(val) else ()
    first = training.head(name)
    times = _times(first, training.repeats)
    heads = [head.fit(_rows(cache, train, done), y, *held_out)
             for head in (first, *(training.head(name, more) for more in range(1, times)))]
    selection, choice = _chosen(first)
    chosen = {**training.settings, **choice.get("settings", {}), "seed": training.seed}
    return FittedHead(name, first, chosen, 0.0, selection, choice=said(choice), repeats=_spread(cache, heads, False),
                      streamed=True, notes=_remarks(name, first, training.repeats)), times


def _rows(cache: FeatureCache, rows: np.ndarray, done: Callable[[int], object]) -> Any:
    from ..heads import StreamedRows

    def read(positions: np.ndarray) -> np.ndarray:
        done(len(positions))
        return cache.read_rows(rows[positions])

    return StreamedRows(read, (len(rows), cache.shape[-1]))


def probabilities_of(
    cache: FeatureCache, head: Head, rows: np.ndarray, view: int | None = 0, n_classes: int | None = None
) -> np.ndarray:
    """Return a head's (n, K) probabilities for these rows of a cache, reading a few thousand at a time.

    K, the classes that the head was trained with, is the cache's own where `n_classes` does not say it.
    """
    from ..heads import probabilities

    n_classes = len(cache.classes) if n_classes is None else n_classes
    found = np.empty((len(rows), n_classes))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        found[start : start + len(part)] = probabilities(head, cache.read_rows(part, view=view), n_classes)
    return found


def _fit(cache: FeatureCache, name: str, head: Head, X: np.ndarray, y: np.ndarray) -> Head:
    """Fit a head; one that is trained by epochs sees val, to keep the best of them."""
    from ..heads import HEADS

    X_val, y_val = cache.split("val", view=0) if HEADS[name].needs_torch else (X[:0], y[:0])
    return head.fit(X, y, X_val, y_val) if len(y_val) else head.fit(X, y)


def _swept(
    cache: FeatureCache, name: str, X: np.ndarray, y: np.ndarray, training: Training, sweep: Sweep, progress: Progress
) -> SweepResult:
    from ..heads import sweep_head

    X_val, y_val = cache.split("val") if sweep.on == "val" else (None, None)
    if y_val is not None and not len(y_val):
        raise CacheError(f"{cache.path} has no labelled val images to choose settings on. Choose by cross-validation.")
    return sweep_head(
        name, X, y, X_val=X_val, y_val=y_val, grid=sweep.grid, fixed=training.settings, folds=sweep.folds,
        seed=training.seed,
        metric=sweep.metric, one_standard_error=sweep.one_standard_error, folder=training.folder, n_jobs=training.jobs,
        scheduler=training.scheduler, progress=progress,
    )  # fmt: skip


def gain_of_views(cache: FeatureCache, plain: Head, trained: Head) -> dict[str, Any]:
    """Compare heads trained on the plain view and on all views, on the same held-out images.

    Returns
    -------
    dict
        `split`, `n`, and the `accuracy` of each way: `plain` (trained on the plain view alone), `views` (trained on
        all) and `tta` (and averaged over all); for the latter two also `difference` from the first, its
        `difference_ci95` and `p_value` (of two comparisons, see `pipeline.evaluation.comparison.Paired`); and all of
        it as a `sentence`. Empty without a held-out split.
    """
    from ..heads import probabilities

    for split in HELD_OUT:
        X, y = cache.split(split)
        if len(y):
            break
    else:
        return {}
    scored = {"plain": (plain, X[:, 0]), "views": (trained, X[:, 0]), "tta": (trained, X)}
    right = {way: probabilities(head, rows, len(cache.classes)).argmax(axis=1) == y
             for way, (head, rows) in scored.items()}  # fmt: skip
    found: dict[str, Any] = {"split": split, "n": len(y), "plain": {"accuracy": float(right["plain"].mean())}}
    for way in ("views", "tta"):
        paired = Paired(len(y), int((right[way] & ~right["plain"]).sum()), int((right["plain"] & ~right[way]).sum()))
        found[way] = {
            "accuracy": float(right[way].mean()), "difference": paired.difference,
            "difference_ci95": list(paired.interval(2)), "p_value": corrected(paired.p_value, 2),
        }  # fmt: skip
    ways = (f"{found[way]['accuracy']:.4f} {text} ({found[way]['difference']:+.4f}, 95 % interval "
            f"{found[way]['difference_ci95'][0]:+.3f} to {found[way]['difference_ci95'][1]:+.3f})"
            for way, text in (("views", f"trained on {cache.views} views"), ("tta", "and averaged over them")))
    sentence = f"On the same {len(y)} {split} images: accuracy {found['plain']['accuracy']:.4f} trained on plain images"
    return {**found, "sentence": f"{sentence}, {', '.join(ways)}."}


def _spread(cache: FeatureCache, heads: list[Head], tta: bool) -> dict[str, Any]:
    """Return each held-out split's accuracies over several seeds."""
    found = {}
    for split in HELD_OUT if len(heads) > 1 else ():
        rows = cache.indices(split)
        if len(rows):
            y, view = cache.labels[rows], None if tta else 0
            scores = [evaluate(y, probabilities_of(cache, head, rows, view))["accuracy"] for head in heads]
            found[split] = {"accuracies": scores, "mean": float(np.mean(scores)), "sd": float(np.std(scores, ddof=1))}
    return found
