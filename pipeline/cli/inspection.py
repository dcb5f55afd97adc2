"""Commands that look at data and results: show, audit, report, export."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import CheckFailedError
from .commands import backbone_of, note_builtin, views_of
from .flags import add_backbone, add_command, add_data, add_features, add_limits, add_views, limits_of, splitting_of
from .printing import print_json, print_notes, printable, progress_bars, readable_size, working
from .tables import print_table


def add_commands(verbs: Any) -> None:
    """Add these commands to the parser's."""
    _add_show(verbs)
    _add_summary(verbs)
    _add_layers(verbs)
    _add_audit(verbs)
    _add_report(verbs)
    _add_export(verbs)


def _add_show(verbs: Any) -> None:
    from ..data.augmentation import AUGMENTATIONS

    parser = add_command(verbs, "show", show, "draw some images of a data set with their labels")
    add_data(parser)
    parser.add_argument("--split", choices=("train", "val", "test", "none"), help="only images of this split")
    parser.add_argument("--augmentation", metavar="NAME",
                        help=f"random training views instead: {', '.join(AUGMENTATIONS)}")
    parser.add_argument("--count", type=int, default=24, metavar="N", help="images (default: 24)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("show.png"), metavar="FILE", help="default: show.png")


def show(options: argparse.Namespace) -> None:
    from ..data import load_dataset
    from ..reports.pictures import dataset_sheet, save

    dataset = load_dataset(options.data, cache_dir=options.cache_dir, **splitting_of(options),
                           progress=progress_bars())
    page, shown = dataset_sheet(dataset, options.split, options.count, options.augmentation, options.seed)
    save(page, options.out)
    if options.json:
        print_json({"path": str(options.out), "images": shown})
    else:
        print(f"{options.out}: {shown} of {len(dataset):,} images")


def _add_summary(verbs: Any) -> None:
    from ..backbones import DEFAULT, POOLED
    from ..finetuning import STRATEGIES

    parser = add_command(verbs, "summary", summary, "a network's layers, what a strategy trains of them, and the work")
    parser.add_argument("--backbone", default=DEFAULT, metavar="NAME",
                        help=f"no weights are needed (default: {DEFAULT})")
    parser.add_argument("--layer", default=POOLED, metavar="NAME", help="where features are read (default: pooled)")
    parser.add_argument("--strategy", default="head-only", metavar="NAME",
                        help=f"{', '.join(STRATEGIES)} (default: head-only)")
    parser.add_argument("--unfreeze", default="", metavar="NAME",
                        help="what is trained at most: half, last-N or a layer's name (default: all; of partial, half)")
    parser.add_argument("--classes", type=int, default=2, metavar="K", help="of the head (default: 2)")
    parser.add_argument("--depth", type=int, default=2, metavar="N",
                        help="modules this deep are one row, with all that is in them (default: 2)")


def summary(options: argparse.Namespace) -> None:
    from ..finetuning import FinetuneSettings
    from ..finetuning.summary import summarise

    settings = FinetuneSettings(strategy=options.strategy, unfreeze=options.unfreeze)
    found = summarise(options.backbone, options.layer, settings, classes=options.classes, depth=options.depth)
    if options.json:
        print_json(found.to_dict())
        return
    print_table(
        ("layer", "kind", "output", "parameters", "trainable", "multiply-adds"),
        [(row.layer, row.kind, " x ".join(map(str, row.output)), *(f"{count:,}" if count else "" for count in (
            row.parameters, row.trainable, row.multiply_adds))) for row in found.rows],
    )  # fmt: skip
    print(f"\n{found.parameters:,} parameters ({readable_size(found.parameter_bytes)} in float32), "
          f"{found.trainable:,} of them trained with {found.strategy}")
    print(f"an image of {' x '.join(map(str, found.input))}: {found.multiply_adds:,} multiply-adds, outputs of all "
          f"layers {readable_size(found.activation_bytes)}")


def _add_layers(verbs: Any) -> None:
    from ..backbones import STORAGES

    parser = add_command(verbs, "layers", layers, "where a network can be cut for finetune --cached")
    add_data(parser)
    add_backbone(parser, precision=False)
    parser.add_argument("--storage", default=STORAGES[0], metavar="T",
                        help=f"of activations: {', '.join(STORAGES)} (default: {STORAGES[0]})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, … (default: auto)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where reports find the result (default: runs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the images left out (default: 0)")
    add_limits(parser)


def layers(options: argparse.Namespace) -> None:
    from ..finetuning.layer_survey import survey_layers

    note_builtin(options)
    found = survey_layers(
        options.data, backbone_of(options, precision="float32"), **splitting_of(options),
        limits=limits_of(options), cache_dir=options.cache_dir, dataset_name=options.dataset_name,
        runs_dir=options.runs_dir, device=options.device, storage=options.storage, seed=options.seed,
        progress=progress_bars(),
    )  # fmt: skip
    if options.json:
        return print_json(found.to_dict())
    print(f"{printable(found.dataset)}, {found.backbone}: {found.images:,} images, {found.train:,} of them an epoch; "
          f"probes were scored on {found.probed:,} train images left out in turn")
    print_table(
        ("", "unfreeze", "from", "shape", "KB", "all", "work above", "s/epoch", "probe (95 %)"),
        [("" if cut.dominated else "*", cut.unfreeze or "(head only)", cut.layer, "x".join(map(str, cut.shape)),
          f"{cut.kilobytes:.1f}", readable_size(1e9 * cut.gigabytes), f"{cut.share:.2f}", f"{cut.seconds:.3g}",
          "{:.3f} ({:.3f}-{:.3f})".format(cut.accuracy, *cut.accuracy_ci95)) for cut in found.cuts],
    )  # fmt: skip
    print(f"* no cut further below takes as little disk and time; an epoch of the whole network takes "
          f"{found.whole_seconds:.3g} s ({found.device}, {found.precision}), without decoding")
    best = next((cut for cut in found.cuts if cut.unfreeze == found.auto), found.cuts[-1])
    print(f"{best.command}   # the lowest cut with at most half of the work above: --unfreeze auto")


def _add_audit(verbs: Any) -> None:
    parser = add_command(verbs, "audit", audit, "look for duplicates, leaks and wrong labels in cached features")
    add_features(parser)
    add_data(parser, splitting=False)
    add_backbone(parser)
    add_views(parser)
    parser.add_argument("--runs", nargs="*", metavar="RUN",
                        help="runs to score again without the leaked images (default: all of this data set)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where runs are (default: runs)")
    parser.add_argument("--near", type=float, metavar="COSINE",
                        help="from which two images count as nearly the same")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="for the contact sheets (default: runs/audit-DATA)")
    parser.add_argument("--write", type=Path, metavar="CSV",
                        help="write the list of images without copies, with near-duplicates in one split and labels of "
                             "train that are nearly surely wrong changed; every command takes it as --data")
    parser.add_argument("--fail-on", choices=("leaks", "label-errors"), action="append", default=[],
                        help="exit with 1 if there are any; may be given twice")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")


def _add_report(verbs: Any) -> None:
    parser = add_command(verbs, "report", report, "write a page about a run, for any browser")
    parser.add_argument("--run", help="name or folder of a run (default: the latest)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where runs are (default: runs)")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR",
                        help="where caches are (default: cache)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run's folder")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write each plot as a file of its own too")
    parser.add_argument("--format", default="svg", metavar="NAME", help="of the plots: svg (default) or png")


def report(options: argparse.Namespace) -> None:
    from ..reports import write_report
    from ..runs.run import Run, latest_run

    run = Run.open(options.run, options.runs_dir) if options.run else latest_run(options.runs_dir)
    with working(f"Writing the report of {run.name}"):
        path = write_report(run, cache_dir=options.cache_dir, out=options.out, plots=options.plots,
                            plot_format=options.format)
    if options.json:
        print_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        print(f"{path}: {readable_size(path.stat().st_size)}; open it in a browser")


def _add_export(verbs: Any) -> None:
    parser = add_command(verbs, "export", export, "write a run as one file for other programs")
    parser.add_argument("--run", help="name or folder of a run (default: the latest)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where runs are (default: runs)")
    parser.add_argument("--format", default="onnx", metavar="NAME", help="onnx (default) or torch-export")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 in the run's folder")


def export(options: argparse.Namespace) -> None:
    from ..runs.export import export
    from ..runs.run import Run, latest_run

    run = Run.open(options.run, options.runs_dir) if options.run else latest_run(options.runs_dir)
    with working(f"Exporting {run.name} and comparing its answers"):
        done = export(run, options.format, options.out)
    if options.json:
        print_json(done)
    else:
        print(f"{done['path']}: as the run on {done['checked']} images, to {done['largest_difference']:.1g}")
    print_notes(done["notes"])


def audit(options: argparse.Namespace) -> None:
    from ..auditing.audit import audit
    from ..backbones import DEFAULT

    found = audit(
        options.data, DEFAULT if options.features else backbone_of(options), features=options.features,
        views=views_of(options),
        runs=options.runs, threshold=options.near, sheets=options.sheets, write=options.write, seed=options.seed,
        cache_dir=options.cache_dir, dataset_name=options.dataset_name, runs_dir=options.runs_dir,
        progress=progress_bars(),
    )  # fmt: skip
    if options.json:
        print_json(found)
    else:
        print_audit(found)
    for kind in dict.fromkeys(options.fail_on):
        if count := len(found[kind.replace("-", "_")]):
            raise CheckFailedError(f"{count} {kind.replace('-', ' ')} in {found['dataset']!r}.")


def print_audit(found: dict[str, Any], most: int = 10) -> None:
    """Say what an audit found, and show the first few of each kind."""
    groups = found["duplicates"]
    across, copies = (sum(map(test, groups)) for test in (lambda one: len(one["splits"]) > 1, lambda one: one["exact"]))
    print(f"{found['dataset']}: {found['images']:,} images, {found['features']:,} features each")
    _print_finding(f"{len(found['leaks'])} images of val or test are in an earlier split too", found["leaks"], most)
    _print_finding(
        f"{len(groups)} groups of same images: {copies} of copies, {len(groups) - copies} of near-duplicates; "
        f"{across} across splits",
        [f"{'copies' if one['exact'] else round(one['similarity'], 3)}: {', '.join(one['paths'][:4])}"
         for one in groups], most,
    )  # fmt: skip
    _print_finding(
        f"{len(found['label_errors'])} labels to look at",
        [f"{one['path']}: rather {one['likelier']} ({one['likelier_probability']:.2f})"
         for one in found["label_errors"]], most,
    )  # fmt: skip
    _print_finding(f"{len(found['outliers'])} outliers", [one["path"] for one in found["outliers"]], most)
    print(f"largest class of train: {found['imbalance']:.1f} times the smallest"
          + (", so look at balanced accuracy" if found["imbalance"] >= 3 else ""))
    print(f"{found['constant_features']} features are constant, {found['dead_features']} of them always 0")
    _print_finding(f"{len(found['skipped'])} files gave no image", [": ".join(one) for one in found["skipped"]], most)
    rows = [
        (one["run"], one["split"], one["leaked"], f"{one['everything']['accuracy']:.4f}",
         f"{one['clean']['accuracy']:.4f}" if one["clean"] else "-",
         "{:.3f}-{:.3f}".format(*one["clean"]["accuracy_ci95"]) if one["clean"] else "-",
         f"{one['clean']['balanced_accuracy']:.4f}" if one["clean"] else "-") for one in found["runs"]
    ]  # fmt: skip
    if rows:
        print()
        print_table(("run", "on", "leaked", "accuracy", "without them", "95 % interval", "balanced"), rows, ("run",))
    if cleaned := found.get("cleaned"):
        beside = f" (see {cleaned['dropped_path']})" if cleaned["dropped"] else ""
        print(f"\n{cleaned['path']}: {cleaned['kept']:,} images; {cleaned['dropped']} dropped{beside}, "
              f"{cleaned['moved']} moved to another split, {cleaned['relabelled']} relabelled (why: its last column)")
    print_notes([*found["notes"], *(f"look at {path}" for path in found["sheets"])])


def _print_finding(headline: str, lines: Sequence[str], most: int) -> None:
    print(headline)
    for line in lines[:most]:
        print(f"  {printable(line)}")
    if len(lines) > most:
        print(f"  … and {len(lines) - most} more (--json lists all)")
