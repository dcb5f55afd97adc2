"""What a page says: facts of one run and of its neighbours, as plain values."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..backbones.layer_names import several
from ..core.errors import PipelineError, RunError
from ..data.augmentation import Views
from ..evaluation.metrics import reliability
from ..runs.run import Run, layer_survey, learning_curves
from ..store import FeatureCache, Spec, cache_path, list_caches, open_caches
from .plots import Point, Series, chart

WAYS = ("heads on the last layer", "heads on several layers", "fine-tuned from cached activations",
        "fine-tuned from images")
MOST_CLASSES = 40  # of a confusion matrix that one can still read
MOST_CURVES = 6  # as many as there are colours
PAIRS = 60  # most frequent confusions, where the matrix is too large


def confusion(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> dict[str, Any]:
    """Return the matrix where it is small enough, and the most frequent confusions."""
    counts = Counter((row["label"], row["prediction"]) for row in rows)
    pairs = [{"label": label, "prediction": prediction, "n": n}
             for (label, prediction), n in counts.most_common() if label != prediction]
    if len(classes) > MOST_CLASSES:
        return {"matrix": None, "pairs": pairs[:PAIRS]}
    most = max(counts.values(), default=1)
    matrix = [[{"n": counts[label, other], "shade": round(counts[label, other] / most, 3), "right": label == other}
               for other in classes] for label in classes]
    return {"matrix": matrix, "pairs": pairs[:PAIRS]}


def reliability_chart(rows: Sequence[Mapping[str, str]], before: tuple[np.ndarray, np.ndarray] | None) -> str:
    """Return how often predictions are right against how sure they are: as saved, and without the temperature."""
    sure = np.array([float(row["prob"] or 0) for row in rows])
    right = np.array([row["label"] == row["prediction"] for row in rows])
    series = [_calibration("as saved", sure, right)]
    if before is not None:
        series.append(_calibration("before calibration", *before))
    return chart(series, title="Reliability diagram: accuracy against confidence", x="confidence", y="accuracy",
                 x_range=(0, 1), y_range=(0, 1), diagonal=True)


def _calibration(name: str, sure: np.ndarray, right: np.ndarray) -> Series:
    bins = reliability(sure, right, 10)
    said = "{}: {n} images, confidence {confidence:.2f}, accuracy {accuracy:.2f}"
    return Series(name, [Point(bin["confidence"], bin["accuracy"], text=said.format(name, **bin)) for bin in bins])


def before_temperature(run: Run, cache: FeatureCache | None, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return confidence and correctness of a head as it was before `--calibrate`.

    Of one that calibrates itself while it trains (such as ridge), as it would be with its bare scores; None for others.
    """
    if cache is None or run.metrics["kind"] != "head" or run.metrics.get("tta"):
        return None
    from ..heads import load_head
    from ..heads.scores import softmax

    head: Any = load_head(run.path)[0]
    fitted = run.metrics.get("calibration", {}).get("temperature")
    before = head.temperature_ / fitted if fitted else 1.0
    if head.temperature_ == before:
        return None
    features, labels = cache.split(split, view=0)
    scores = softmax(head.scores(features) / before)
    return scores.max(axis=1), np.asarray(head.classes_)[scores.argmax(axis=1)] == labels


def neighbours_chart(run: Run, runs: Sequence[Run], split: str, name: str = "this run") -> str:
    """Return accuracy against seconds for all runs that were scored on the same split of this data set, by their way:
    heads on the features of one layer or of several, fine-tuning from cached activations or from images.
    """
    others = [other for other in runs
              if other.metrics["dataset"] == run.metrics["dataset"] and split in other.metrics["splits"]]
    ways = {other.name: name if other.name == run.name else way_of(other) for other in others}
    series = [Series(way, [_place(other, split) for other in others if ways[other.name] == way], line=False)
              for way in (name, *WAYS)]
    return chart([one for one in series if one.points], title="Accuracy against seconds, for all runs of this data set",
                 x="seconds in all (features and training)", y=f"accuracy on {split}", x_log=True)  # fmt: skip


def way_of(run: Run) -> str:
    """Return how a run was trained, one of `WAYS`."""
    heads, layers, cached, images = WAYS
    with suppress(RunError):
        config = run.config()
        if run.metrics["kind"] == "finetune":
            return cached if config.get("finetune", {}).get("cached") else images
        return layers if several(str(config.get("backbone", {}).get("layer", ""))) else heads
    return images if run.metrics["kind"] == "finetune" else heads


def layer_chart(run: Run) -> dict[str, Any] | None:
    """Return a chart of what probes scored on each layer, where `layers` was run on this data set and backbone."""
    found = layer_survey(run.path.parent, run.metrics["dataset"], run.metrics["backbone"])
    if found is None:
        return None
    points = []
    for cut in found["cuts"]:
        low, high = cut["accuracy_ci95"]
        words = (f"{cut['layer']} ({'x'.join(map(str, cut['shape']))}): {100 * cut['accuracy']:.1f} %, "
                 f"{cut['kilobytes']:.1f} KB an image, {cut['seconds']:.3g} s an epoch above it")
        points.append(Point(cut["share"], cut["accuracy"], low, high, words))
    drawn = chart([Series("probe of a layer", points, band=True)], title="Accuracy of a probe on each layer, against "
                  "the share of the network's work above it", x="share of the work above the layer",
                  y=f"accuracy on {found['probed']:,} train images left out", x_range=(0, 1))
    return {"chart": drawn, **found}


def _place(run: Run, split: str) -> Point:
    scores, seconds = run.metrics["splits"][split], run.metrics["seconds"]["total"]
    low, high = scores["accuracy_ci95"]
    text = f"{run.name}: {100 * scores['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) in {seconds:.1f} s"
    return Point(max(seconds, 1e-3), scores["accuracy"], low, high, text)


def learning_curve(run: Run, spec_sha256: str) -> dict[str, Any] | None:
    """Return a chart of the learning curves that were drawn on a run's features, its own head's first, and forecasts.

    None where `learning-curve` was never run on them.
    """
    own = run.metrics.get("head")
    curves = learning_curves(run.path.parent, run.metrics["dataset"], spec_sha256) if spec_sha256 else []
    curves.sort(key=lambda curve: curve["head"] != own)
    series, sentences, several = [], [], Counter(curve["head"] for curve in curves)
    for number, curve in enumerate(curves[:MOST_CURVES]):
        told = f" ({curve['told']})" if several[curve["head"]] > 1 and curve.get("told") else ""
        head, said = curve["head"] + told, "{head}, {n} images: {mean:.3f} ({ci95[0]:.3f} to {ci95[1]:.3f})"
        points = [Point(one["n"], one["mean"], one["ci95"][0], one["ci95"][1], said.format(**one))
                  for one in sorted(curve["points"], key=lambda one: one["n"])]  # fmt: skip
        series.append(Series(head, points, band=True, colour=number))
        for one in curve["forecasts"]:
            sentence = (f"{head}: with twice the labels expect {one['twice']:.3f} ({one['low']:.3f} to "
                        f"{one['high']:.3f}).")  # fmt: skip
            ahead = Point(2 * points[-1].x, one["twice"], one["low"], one["high"], sentence)
            series.append(Series("", [ahead], line=False, colour=number))
            sentences.append(sentence)
    if not series:
        return None
    drawn = chart(series, title="Accuracy against the number of training images", x="training images",
                  y=f"accuracy on {curves[0]['split']}", x_log=True)  # fmt: skip
    return {"chart": drawn, "sentences": sentences, "left_out": len(curves) - MOST_CURVES}


def history_charts(run: Run) -> dict[str, str]:
    """Return loss and accuracy by epoch, of a run that was trained by epochs."""
    path = run.path / "history.json"
    if not path.is_file():
        return {}
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PipelineError(f"Cannot read {str(path)!r}: {error}.") from error
    charts = {}
    for what in ("loss", "accuracy"):
        series = [Series(f"{split} {what}", [Point(line["epoch"], line[f"{split}_{what}"]) for line in history
                                             if line.get(f"{split}_{what}") is not None]) for split in ("train", "val")]
        if shown := [one for one in series if one.points]:
            charts[what] = chart(shown, title=f"{what.capitalize()} by epoch", x="epoch", y=what)
    return charts


def cache_of(run: Run, cache_dir: Path) -> FeatureCache | None:
    """Open the features behind a run: of a head those it learned from, of a fine-tuned network the frozen ones."""
    known = run.features if run.metrics["kind"] == "head" else []
    wanted = known or [run.metrics["backbone"]]
    found: dict[str, Path] = {}
    for entry in list_caches(cache_dir):
        if (entry.dataset, entry.state) == (run.metrics["dataset"], "complete"):
            with FeatureCache.open(entry.path) as cache:
                if known or "shape" not in cache.meta:  # a map takes features, not activations
                    found.setdefault(cache.spec.sha256 if known else cache.meta["backbone"], entry.path)
    return open_caches([found[one] for one in wanted]) if set(wanted) <= found.keys() else None


def command(run: Run) -> str:
    """Return the command that makes a run again."""
    config, kind = run.config(), run.metrics["kind"]
    words = ["pipeline", "train-head" if kind == "head" else "finetune", *_features(config)]
    if kind == "head":
        words += ["--head", config["head"]["name"], *_settings(config["head"].get("settings", {}))]
        words += ["--tta"] if config["head"].get("tta") else []
        if calibration := config.get("calibration"):
            words += ["--calibrate", calibration["on"], "--coverage", str(calibration["coverage"])]
            words += ["--folds", str(calibration["folds"])] if calibration["on"] == "cv" else []
    else:
        for name, value in config["finetune"].items():
            flag = name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join([*words, "--name", run.name])


def curve_command(run: Run) -> str:
    """Return the command that draws the learning curve of a run's features."""
    head = ["--head", run.metrics["head"]] if run.metrics["kind"] == "head" else []
    return shlex.join(["pipeline", "learning-curve", *_features(run.config()), *head])


def _features(config: Mapping[str, Any]) -> list[str]:
    dataset, backbone = config["dataset"], config["backbone"]
    if "joined" in backbone:
        parts = [(part["name"], Spec(part["spec"])) for part in backbone["joined"]]
        return ["--features", *(str(cache_path(Path("cache"), dataset["name"], *part)) for part in parts)]
    words = ["--data", dataset.get("data", dataset["root"]), "--backbone", backbone["name"]]
    if "weights" in backbone and backbone["weights"] == "random":
        words += ["--weights", "random"]
    if backbone.get("layer", "pooled") != "pooled":
        words += ["--layer", backbone["layer"]]
    return [*words, *Views(**backbone.get("views", {})).flags]


def _settings(settings: Mapping[str, Any]) -> list[str]:
    words = ["--seed", str(settings["seed"])] if "seed" in settings else []
    for name, value in settings.items():
        if name not in ("seed", "groups"):  # groups of columns are chosen again
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words
