"""One function a command: from parsed words to a call, and from its result to text."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ..core.errors import CheckFailedError, PipelineError
from .flags import HEAD_SETTINGS, limits_of, scheduler_of, splitting_of
from .predictions import (
    as_values,
    print_doubts,
    print_predictions,
    print_scores,
    save_grid,
    save_table,
    stream_to_table,
    table_of,
)
from .printing import (
    print_beside_bars,
    print_calibration,
    print_estimate,
    print_json,
    print_notes,
    progress_bars,
    readable_age,
    readable_size,
)
from .results import print_runs, print_trained, print_verdicts
from .tables import fitting, print_table


def extract(options: argparse.Namespace) -> None:
    from ..stage_one.estimation import estimate
    from ..stage_one.extraction import extract

    scheduler = scheduler_of(options)
    note_builtin(options)
    asked: dict[str, Any] = {
        "views": views_of(options), **splitting_of(options), "rehash": options.rehash,
        "retry_failed": options.retry_failed, "limits": limits_of(options), "cache_dir": options.cache_dir,
        "dataset_name": options.dataset_name,
        "batch_size": options.batch_size, "workers": options.workers, "device": options.device,
        "engine": options.engine, "progress": progress_bars(),
    }  # fmt: skip
    if options.estimate:
        if scheduler:
            raise PipelineError("--estimate measures this machine alone: leave --backend out, and give --machines W to "
                                "learn what a cluster of W machines like this one would take.")
        found = estimate(options.data, backbone_of(options), machines=options.machines, **asked)
        return print_estimate(found, options)
    if options.machines is not None:
        raise PipelineError("--machines is for --estimate.")
    if scheduler and options.workers is not None:
        raise PipelineError("--workers are threads of this machine; a Dask worker's are set where it is started, by "
                            "`dask worker --nthreads`.")
    done = extract(options.data, backbone_of(options), strict=options.strict, part_rows=options.part_rows,
                   scheduler=scheduler, tell=print_beside_bars, **asked)
    print_notes(done.notes)
    if options.json:
        print_json({**dataclasses.asdict(done), "path": str(done.path)})
        return
    how = (f"{done.computed} computed at {done.images_per_second:.0f} images/s, {done.reused} reused"
           if done.computed else "all found, no forward pass")
    print(f"{done.path}: {done.rows} rows ({how}), {done.skipped} skipped, {done.seconds:.1f} s")
    if done.skipped:
        with done.open() as cache:
            for path, reason in cache.skipped[:5]:
                print(f"  skipped {path!r}: {reason}")
            if done.skipped > 5:
                print(f"  … and {done.skipped - 5} more, all in the file's skipped_paths and skipped_reasons")


def train_head(options: argparse.Namespace) -> None:
    from ..backbones import DEFAULT
    from ..runs.scores import ranked
    from ..stage_two.train import train_head, train_heads

    sweep, scheduler = _sweep(options), scheduler_of(options)
    note_builtin(options)
    if scheduler and (sweep is None or options.shots):
        raise PipelineError("--backend dask is for the many fits of a sweep: add --sweep (or --grid), or leave it out.")
    if options.shots:
        return learning_curve(options)
    settings = _head_settings(options)
    common: dict[str, Any] = {
        "features": options.features, "views": views_of(options), "tta": options.tta, "seed": options.seed,
        "settings": settings, "sweep": sweep, "repeats": options.repeats,
        "calibration": _calibration(options), "max_memory": options.max_memory, "scheduler": scheduler,
        "overwrite": options.overwrite,
        "cache_dir": options.cache_dir, "dataset_name": options.dataset_name, "runs_dir": options.runs_dir,
        "progress": progress_bars(),
    }  # fmt: skip
    names = _heads(options)
    backbone = DEFAULT if options.features else backbone_of(options)
    if len(names) == 1:
        runs = [train_head(names[0], options.data, backbone, name=options.name, **common)]
    else:
        if options.name:
            raise PipelineError("--name names one run; with several heads each takes its own name.")
        runs = train_heads(names, options.data, backbone, done=print_trained, **common)
    if any(run.metrics.get("streamed") for run in runs):
        print_notes(["Features were streamed from the file, which is slower; --max-memory says what may be in memory."])
    print_runs(ranked([run.metrics for run in runs]), options)
    print_notes(run.remark for run in runs if run.remark)
    print_notes(dict.fromkeys(note for run in runs for note in run.metrics.get("notes", ())))
    for run in () if options.json else runs:
        if run.metrics.get("choice"):
            print(f"{run.metrics['head']}: {run.metrics['choice']['sentence']}")
        if run.metrics.get("layers"):
            print(f"{run.metrics['head']}: {run.metrics['layers']['sentence']}")
        if run.metrics.get("views"):
            print(f"{run.metrics['head']}: {run.metrics['views']['sentence']}")
        for split, spread in run.metrics.get("repeats", {}).items():
            print(f"{run.metrics['head']}, {split}, {len(spread['accuracies'])} seeds: accuracy {spread['mean']:.4f}, "
                  f"standard deviation {spread['sd']:.4f}")
        print_calibration(run.metrics)
    if not options.json and len(runs) == 1:
        print(f"saved {runs[0].path}")


def note_builtin(options: argparse.Namespace) -> None:
    """Say whose images these are where none were named."""
    if options.builtin and not getattr(options, "features", None):
        print_notes([f"--data was left out: these are the built-in images, {options.data}."])


def learning_curve(options: argparse.Namespace) -> None:
    from ..backbones import DEFAULT
    from ..stage_two.train import learning_curve as curve

    found = curve(
        _heads(options), options.data, DEFAULT if options.features else backbone_of(options), features=options.features,
        views=views_of(options),
        sizes=getattr(options, "sizes", None), shots=options.shots, repeats=options.repeats,
        settings=_head_settings(options), seed=options.seed, cache_dir=options.cache_dir,
        dataset_name=options.dataset_name, runs_dir=options.runs_dir,
        progress=progress_bars(),
    )  # fmt: skip
    print_notes(found["notes"])
    if options.json:
        print_json(found)
        return
    print_table(
        ("head", "shots", "images", "subsets", f"accuracy on {found['split']}", "sd"),
        [(each["head"], each["shots"] or "", each["n"], len(each["accuracies"]), f"{each['mean']:.4f}",
          "" if each["sd"] is None else f"{each['sd']:.4f}") for each in found["points"]],
    )
    for each in found["forecasts"]:
        print(f"{each['head']}: with twice the labels expect {each['twice']:.3f} ({each['low']:.3f} to "
              f"{each['high']:.3f}); error falls as n^-{each['rate']:.2f} towards {each['floor']:.3f}")
    print("`pipeline report` draws this in the page of every run on these features")


def finetune(options: argparse.Namespace) -> None:
    from ..finetuning import FinetuneSettings
    from ..finetuning.finetune import finetune
    from ..runs.scores import ranked

    note_builtin(options)
    fields = {field.name for field in dataclasses.fields(FinetuneSettings)}
    given = {name: value for name, value in vars(options).items() if name in fields and value is not None}
    settings = FinetuneSettings.of(options.preset, **given)
    run = finetune(
        options.data, backbone_of(options, precision="float32"), settings, name=options.name,
        overwrite=options.overwrite, resume=options.resume, **splitting_of(options),
        limits=limits_of(options), cache_dir=options.cache_dir, dataset_name=options.dataset_name,
        runs_dir=options.runs_dir, progress=progress_bars(),
        log=print_beside_bars,
    )  # fmt: skip
    if run is None:  # another process of several tells
        return
    print_runs(ranked([run.metrics]), options)
    print_notes([run.remark] if run.remark else [])
    print_notes(run.metrics.get("notes", ()))
    if not options.json:
        print(f"saved {run.path}")


def compare(options: argparse.Namespace) -> None:
    from ..runs.scores import compare

    runs = compare(options.data, baseline=options.baseline, runs_dir=options.runs_dir)
    print_runs(runs, options)
    print_verdicts(runs, options)
    if options.html:
        from ..reports import write_comparison

        print_notes([f"look at {write_comparison(runs, options.html, runs_dir=options.runs_dir)}"])


def predict(options: argparse.Namespace) -> None:
    from ..data import list_images
    from ..runs.classifier import ImageClassifier

    table = table_of(options)
    run = _run_to_predict_with(options)
    paths = [path for given in options.images for path in list_images(given)]
    classifier = ImageClassifier.load(
        run, device=options.device, engine=options.engine, batch_size=options.batch_size, workers=options.workers,
        cache_dir=options.cache_dir, limits=limits_of(options), abstain_below=options.abstain_below,
        scores=options.scores,
    )
    if table and not (options.json or options.grid):
        stream_to_table(classifier, run, paths, table, options)
        return
    found = classifier.predict(paths, progress=progress_bars(), tta=options.tta)
    print_notes(classifier.notes)
    failed = [prediction for prediction in found if prediction.label is None]
    if len(failed) == len(found):
        raise PipelineError(f"None of the {len(found)} files is a readable image: {failed[0].path!r}: "
                            f"{failed[0].reason}.")
    if table:
        save_table(found, classifier.classes, table, options)
    if options.grid:
        save_grid(found, options.grid)
    if options.json:
        print_json({"predictions": [as_values(each, options.scores, options.topk) for each in found],
                    "failed": [{"path": each.path, "reason": each.reason} for each in failed]})
    elif table:
        print(f"{table}: {len(found) - len(failed)} images classified, {len(failed)} unreadable")
    else:
        print_predictions(found, options.topk)
        if options.scores:
            print_scores(found)
    print_doubts(classifier, run, found)
    print_notes(f"no prediction for {each.path!r}: {each.reason}" for each in failed[:5])
    if len(failed) > 5:
        print_notes([f"… and {len(failed) - 5} more"])


def _run_to_predict_with(options: argparse.Namespace) -> Any:
    """Return the run that was named, or the best one and say which that is."""
    from ..runs.run import Run, split_of
    from ..runs.scores import best_run

    if options.run:
        run = Run.open(options.run, options.runs_dir)
    else:
        run, others = best_run(options.runs_dir)
        split = split_of(run.metrics)
        figures = run.metrics["splits"][split]
        which = f"the best of {others} runs" if others > 1 else "the only run"
        print_notes([f"Using {run.name}, {which} on {run.metrics['dataset']} (accuracy {figures['accuracy']:.4f} on "
                     f"{figures['n']} {split} images); choose another with --run."])
    if run.metrics.get("tta") and not options.tta:
        print_notes([f"{run.name} was scored with probabilities averaged over views; --tta averages them here too."])
    return run


def backbones(options: argparse.Namespace) -> None:
    from ..backbones import listings

    wanted = (options.filter or "").lower()
    found = [dataclasses.asdict(one) for one in listings()
             if wanted in one.name.lower() and (one.offline or not options.offline)]
    if options.json:
        print_json({"backbones": found})
        return
    print_table(
        ("name", "features", "parameters", "pixels", "top-1 %", "weights", "here"),
        [(each["name"], each["features"], f"{each['parameters'] / 1e6:.1f} M", each["pixels"],
          "" if each["top1"] is None else f"{each['top1']:.1f}", each["weights"], "yes" if each["offline"] else "")
         for each in found],
    )  # fmt: skip
    print("\ntimm:NAME takes any network of timm, where that is installed (timm.list_models() names them).")


def cache_ls(options: argparse.Namespace) -> None:
    from ..store import list_caches

    entries = list_caches(options.cache_dir)
    if options.json:
        print_json({"caches": [{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries]})
        return
    if not entries:
        print(f"no caches in {options.cache_dir}")
        return
    for dataset in dict.fromkeys(each.dataset for each in entries):
        _print_caches([each for each in entries if each.dataset == dataset])
    print(f"{len(entries)} caches, {readable_size(sum(each.bytes for each in entries))}, in {options.cache_dir}")


def _print_caches(entries: Sequence[Any]) -> None:
    """Print a table of one data set's caches, below what it is."""
    from ..backbones import POOLED

    known = next((each for each in entries if each.root), entries[0])
    classes = f" · {known.classes} classes" if known.classes else ""
    print(fitting(f"data set {known.dataset}{classes}{' · ' + known.root if known.root else ''}"))
    columns = {
        "file": [str(each.path) for each in entries],
        "rows": [f"{each.rows:,}" for each in entries],
        "views": [str(each.views) if each.views > 1 else "" for each in entries],
        "precision": [each.precision for each in entries],
        "layer": ["" if each.layer == POOLED else each.layer for each in entries],
        "kept as": [each.storage for each in entries],
        "size": [readable_size(each.bytes) for each in entries],
        "age": [readable_age(each.age) for each in entries],
        "state": [each.state for each in entries],
    }
    shown = {name: values for name, values in columns.items() if any(values)}
    print_table(tuple(shown), list(zip(*shown.values(), strict=True)), ("layer", "file"))
    print()


def cache_import(options: argparse.Namespace) -> None:
    from ..stage_one.embeddings import cache_embeddings, read_labels

    told = read_labels(options.labels) if options.labels else {}
    done = cache_embeddings(
        options.file, told.get("label"), told.get("split"), paths=told.get("path"), source=options.source,
        dataset_name=options.dataset_name, val_fraction=options.val_fraction,
        test_fraction=options.test_fraction, cache_dir=options.cache_dir,
    )  # fmt: skip
    print_notes(done.notes)
    if options.json:
        return print_json({**dataclasses.asdict(done), "path": str(done.path)})
    print(f"{done.path}: {done.rows} rows; use them as --features {done.path}")


def cache_verify(options: argparse.Namespace) -> None:
    from ..stage_one.caches import verify

    reports = verify(options.paths, cache_dir=options.cache_dir, recompute=options.recompute, device=options.device,
                     progress=progress_bars())
    problems = [f"{report.path}: {problem}" for report in reports for problem in report.problems]
    if options.json:
        caches = [{**dataclasses.asdict(report), "path": str(report.path)} for report in reports]
        print_json({"ok": not problems, "problems": problems, "caches": caches})
    for report in () if options.json else reports:
        print(f"{report.path}: {'damaged' if report.problems else 'sound'}")
        if report.recomputed:
            print(f"  {report.recomputed} images through the backbone again: largest deviation {report.deviation:.2g}")
        if report.unavailable:
            print(f"  {report.unavailable} chosen images are gone or have other content by now")
        print("".join(f"  {problem}\n" for problem in report.problems), end="")
    if problems:
        raise CheckFailedError(f"{len(problems)} problems found; `extract` mends a cache, keeping its sound rows.")


def cache_rm(options: argparse.Namespace) -> None:
    from ..stage_one.caches import removable
    from ..store import remove

    entries = removable(options.paths, cache_dir=options.cache_dir, runs_dir=options.runs_dir,
                        keep_newest=options.keep_newest, superfluous=options.unused)
    freed = 0
    for entry in entries:
        freed += entry.bytes if options.dry_run else remove(entry)
        if not options.json:
            print(f"{'would remove' if options.dry_run else 'removed'} {entry.path} ({entry.state})")
    if options.json:
        print_json({"removed": [str(entry.path) for entry in entries], "bytes": freed, "dry_run": options.dry_run})
    else:
        print(f"{readable_size(freed)} {'would be ' if options.dry_run else ''}freed")


def backbone_of(options: argparse.Namespace, precision: str | None = None) -> Any:
    from ..backbones import resolve_again

    return resolve_again(
        options.backbone, options.weights, options.layer, precision or options.precision, options.seed,
        getattr(options, "fast_decode", False), options.resize, getattr(options, "decoder", "pillow"),
        _storage(options), cache_dir=None if precision else options.cache_dir,
    )


def _storage(options: argparse.Namespace) -> str:
    """Return how a layer's activations are to be kept, where they are."""
    from ..backbones import STORAGES

    if not hasattr(options, "keep_shape"):
        return ""
    if options.storage and not options.keep_shape:
        raise PipelineError("--storage says how activations are kept: give --layer NAME and --keep-shape with it.")
    return (options.storage or STORAGES[0]) if options.keep_shape else ""


def views_of(options: argparse.Namespace) -> Any:
    """Return the views that the flags name, or None."""
    from ..data.augmentation import DEFAULT_AUGMENTATION, Views

    drawn = options.augmentation not in (None, "none") or options.view_seed
    if drawn and options.views in (None, 1):
        raise PipelineError("--augmentation and --view-seed say how further views are drawn: give --views 2 or more.")
    return None if options.views is None else Views(
        options.views, options.augmentation or DEFAULT_AUGMENTATION, options.view_seed
    )


def _heads(options: argparse.Namespace) -> list[str]:
    from ..heads import HEADS

    names = list(HEADS) if options.head == "all" else options.head.split(",")
    for name in names:
        HEADS[name]  # an unknown one is said before any work
    return names


def _sweep(options: argparse.Namespace) -> Any:
    from ..stage_two.fit import Sweep

    if not (options.sweep or options.grid):
        return None
    grid = {name: [_value(value) for value in values.split(",")] for name, values in map(_pair, options.grid)}
    return Sweep(grid or None, options.select_on, options.folds, options.metric, options.one_standard_error)


def _calibration(options: argparse.Namespace) -> Any:
    from ..stage_two.calibrate import Calibration

    return Calibration(options.calibrate, options.coverage, options.folds) if options.calibrate else None


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name and value):
        raise PipelineError(f"Expected NAME=VALUE, not {text!r}.")
    return name.replace("-", "_"), value


def _head_settings(options: argparse.Namespace) -> dict[str, Any]:
    names = [flag.removeprefix("--").replace("-", "_") for flag in (*HEAD_SETTINGS, "--batch-size")]
    settings = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings |= {name: _value(value) for name, value in map(_pair, options.set)}
    if "C" in settings:
        settings["C"] = _value(settings["C"])
    return settings


def _value(text: str) -> Any:
    """Read a number, true, false or null as JSON does; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
