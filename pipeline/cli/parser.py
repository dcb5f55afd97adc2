"""The words that the command line understands. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..backbones import STORAGES
from ..store.paths import PART_ROWS
from . import commands, inspection, label, results
from .flags import (
    Parser,
    add_backbone,
    add_cluster,
    add_command,
    add_data,
    add_finetune_settings,
    add_head,
    add_limits,
    add_run,
    add_running,
    add_sweep,
    add_tta,
    add_views,
    numbers,
    positive,
)


def command_parser() -> tuple[Parser, Any]:
    """Return the parser of every command but `recipe`, which types them, and where to add more commands."""
    from .. import __doc__ as about

    parser = Parser(prog="pipeline", description=(about or "").split("\n\nNotes")[0],
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    for add in (_add_extract, _add_train_head, _add_learning_curve, _add_finetune, _add_compare, _add_predict):
        add(verbs)
    backbones = add_command(verbs, "backbones", commands.backbones, "list the backbones")
    backbones.add_argument("filter", nargs="?", metavar="FILTER", help="only those whose name holds this text")
    backbones.add_argument("--offline", action="store_true", help="only those whose weights are on this machine")
    _add_cache_commands(verbs)
    label.add_commands(verbs)
    inspection.add_commands(verbs)
    results.add_commands(verbs)
    return parser, verbs


def _add_extract(verbs: Any) -> None:
    extract = add_command(verbs, "extract", commands.extract, "run the frozen backbone once and cache its features")
    add_data(extract)
    add_backbone(extract)
    add_views(extract)
    add_running(extract)
    add_cluster(extract)
    extract.add_argument("--estimate", action="store_true",
                         help="only tell what it would take: time (of a small sample), disk, memory; writes no cache")
    extract.add_argument("--machines", type=int, metavar="W",
                         help="with --estimate: also what a cluster of W machines like this one would take")
    extract.add_argument("--part-rows", type=positive, metavar="N",
                         help=f"keep a cache of more than N images in parts of N (default: as it is, or {PART_ROWS})")
    extract.add_argument("--keep-shape", action="store_true",
                         help="keep the activations of --layer as they are, (C, H, W) or (T, C)")
    extract.add_argument("--storage", metavar="T",
                         help=f"of such activations: {', '.join(STORAGES)} (default: {STORAGES[0]})")
    extract.add_argument("--rehash", action="store_true", help="read every file, also those that seem unchanged")
    extract.add_argument("--retry-failed", action="store_true", help="try images again that gave no features before")
    extract.add_argument("--strict", action="store_true", help="exit with 2 if any image cannot be read")
    add_limits(extract)


def _add_train_head(verbs: Any) -> None:
    head = add_command(verbs, "train-head", commands.train_head, "train a head on cached features")
    add_head(head)
    add_run(head)
    add_tta(head)
    add_sweep(head)
    add_cluster(head)


def _add_learning_curve(verbs: Any) -> None:
    curve = add_command(verbs, "learning-curve", commands.learning_curve, "accuracy against training size")
    add_head(curve)
    curve.add_argument("--sizes", type=numbers, metavar="N1,N2,…", help="training images (default: 5 %% to all)")
    curve.add_argument("--shots", type=numbers, metavar="K1,K2,…", help="images a class instead, such as 1,2,5,10,25")
    curve.add_argument("--repeats", type=int, default=3, metavar="N", help="random subsets a size (default: 3)")
    curve.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    curve.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                       help="where reports find the curve")


def _add_finetune(verbs: Any) -> None:
    finetune = add_command(verbs, "finetune", commands.finetune, "retrain the whole network, for comparison")
    add_data(finetune)
    add_backbone(finetune, precision=False)
    add_run(finetune)
    finetune.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    add_limits(finetune)
    add_finetune_settings(finetune)


def _add_compare(verbs: Any) -> None:
    compare = add_command(verbs, "compare", commands.compare, "one table of all runs")
    compare.add_argument("--data", help="only runs of this data set")
    compare.add_argument("--baseline", metavar="RUN", help="compare all others with this run, not only with the best")
    compare.add_argument("--html", type=Path, metavar="FILE",
                         help="write a page too: differences, classes, images on which runs disagree")
    compare.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                         help="where runs are (default: runs)")


def _add_predict(verbs: Any) -> None:
    predict = add_command(verbs, "predict", commands.predict, "classify images with a run")
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|ARCHIVE",
                         help="image files, folders and archives of them, URLs")
    predict.add_argument("--run", help="name or folder of a run (default: the best of the newest data set)")
    predict.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                         help="where runs are (default: runs)")
    predict.add_argument("--csv", type=Path, metavar="FILE",
                         help="write all probabilities to a CSV file; goes on where it was interrupted")
    predict.add_argument("--bom", action="store_true",
                         help="begin the CSV file with a byte-order mark, by which spreadsheet programs tell UTF-8")
    predict.add_argument("--parquet", type=Path, metavar="FILE", help="likewise to a Parquet file")
    predict.add_argument("--grid", type=Path, metavar="FILE", help="draw the first images with their labels (PNG)")
    predict.add_argument("--topk", type=positive, default=1, metavar="K",
                         help="tell the K likeliest labels of each image (tables have all probabilities; default: 1)")
    predict.add_argument("--scores", action="store_true", help="tell the head's raw score of every class too")
    predict.add_argument("--abstain-below", type=float, default=0.0, metavar="P",
                         help="mark images whose likeliest label has a probability below P as not answered")
    add_tta(predict)
    predict.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR",
                         help="where prepared networks are kept (default: cache)")
    add_running(predict)
    add_limits(predict)


def _add_cache_commands(verbs: Any) -> None:
    cache = verbs.add_parser("cache", help="list, verify, import or remove caches")
    cache.set_defaults(parser=cache)
    own = cache.add_subparsers(metavar="ls|verify|import|rm", required=True, parser_class=Parser)
    ls = add_command(own, "ls", commands.cache_ls, "list the caches")
    verify = add_command(own, "verify", commands.cache_verify, "check every bit of caches; exit 1 if any is damaged")
    verify.add_argument("--recompute", type=int, default=0, metavar="N",
                        help="run N random images of each through the backbone again")
    verify.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, … (default: auto)")
    given = add_command(own, "import", commands.cache_import, "keep features that another program made, for "
                                                              "train-head --features")
    given.add_argument("file", type=Path, metavar="FILE", help=".npy (N, D), or .parquet with a column of lists")
    given.add_argument("--labels", type=Path, metavar="TABLE", help="a line for each row: label, perhaps split, path")
    given.add_argument("--source", default="given", metavar="NAME", help="which model made them (default: given)")
    given.add_argument("--dataset-name", metavar="NAME", help="what they are of (default: the file's name)")
    for name in ("val", "test"):
        given.add_argument(f"--{name}-fraction", type=float, metavar="SHARE",
                           help=f"share of the rows without a given split that becomes {name} (default: "
                                f"{'0.2' if name == 'val' else '0'})")
    rm = add_command(own, "rm", commands.cache_rm, "remove caches")
    rm.add_argument("--keep-newest", action="store_true", help="all but the newest of each data set and backbone")
    rm.add_argument("--unused", action="store_true", help="those that no run was trained on")
    rm.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    rm.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for parser in (verify, rm):
        parser.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="cache files")
    for parser in (ls, verify, given, rm):
        parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR",
                            help="where caches are (default: cache)")
