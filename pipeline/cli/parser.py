"""The words that the command line understands. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import PipelineError, UnknownNameError, suggestion
from . import commands, looking


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with a suggestion for what was mistyped."""

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        if "invalid choice: " in message and self._subparsers:
            commands = next(action.choices for action in self._subparsers._group_actions)
            raise UnknownNameError("command", message.split("'")[1], commands or ())
        raise PipelineError(f"{message[0].upper()}{message[1:]}. `{self.prog} --help` tells more.")

    def parse_args(self, arguments: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, left_over = self.parse_known_args(arguments, namespace)
        if left_over:
            known = [flag for flag in options.parser._option_string_actions if flag.startswith("--")]
            hint = suggestion(left_over[0], known, most=0).split(" Known:")[0]
            raise PipelineError(f"Unknown argument {left_over[0]!r}.{hint} `{options.parser.prog} --help` lists all.")
        return options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command. Imports nothing heavy: ``--help`` answers at once."""
    from .. import __doc__ as about

    parser = _Parser(prog="pipeline", description=(about or "").split("\n\nExamples")[0],
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    extract = _command(verbs, "extract", commands.extract, "run the frozen backbone once and cache its features")
    _add_data(extract)
    _add_backbone(extract)
    _add_running(extract)
    extract.add_argument("--rehash", action="store_true", help="read every file, also those that seem unchanged")
    extract.add_argument("--retry-failed", action="store_true", help="try images again that gave no features before")
    extract.add_argument("--strict", action="store_true", help="exit with 2 if any image cannot be read")
    _add_limits(extract)

    head = _command(verbs, "train-head", commands.train_head, "train a head on cached features")
    _add_head(head)
    _add_run(head)
    _add_sweep(head)

    curve = _command(verbs, "learning-curve", commands.learning_curve, "accuracy against the number of training images")
    _add_head(curve)
    curve.add_argument("--sizes", type=_numbers, metavar="N1,N2,…", help="training images (default: 5 % to all)")
    curve.add_argument("--shots", type=_numbers, metavar="K1,K2,…", help="images a class instead, such as 1,2,5,10,25")
    curve.add_argument("--repeats", type=int, default=3, metavar="N", help="random subsets a size (default: 3)")
    curve.add_argument("--seed", type=int, default=0)

    finetune = _command(verbs, "finetune", commands.finetune, "retrain the whole network, for comparison")
    _add_data(finetune)
    _add_backbone(finetune, precision=False)
    _add_run(finetune)
    finetune.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    _add_limits(finetune)
    _add_finetune_settings(finetune)

    compare = _command(verbs, "compare", commands.compare, "one table of all runs")
    compare.add_argument("--data", help="only runs of this data set")
    compare.add_argument("--baseline", metavar="RUN", help="compare all others with this run, not only with the best")
    compare.add_argument("--runs-dir", type=Path, default=Path("runs"))

    predict = _command(verbs, "predict", commands.predict, "classify images with a run")
    predict.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
    predict.add_argument("--run", help="name or folder of a run (default: the latest)")
    predict.add_argument("--runs-dir", type=Path, default=Path("runs"))
    predict.add_argument("--csv", type=Path, metavar="FILE",
                         help="write all probabilities to a CSV file; goes on where it was interrupted")
    predict.add_argument("--grid", type=Path, metavar="FILE", help="draw the first images with their labels (PNG)")
    predict.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR",
                         help="where prepared networks are kept (default: cache)")
    _add_running(predict)
    _add_limits(predict)

    _command(verbs, "backbones", commands.backbones, "list the backbones")
    _add_cache_commands(verbs)
    looking.add_commands(verbs)
    return parser


def _command(verbs: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> _Parser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _add_head(parser: _Parser) -> None:
    """Which features, which head, and its settings."""
    from ..heads import HEADS

    parser.add_argument("--head", default="logistic", metavar="NAME",
                        help=f"{', '.join(HEADS)}; several with commas between, or all (default: logistic)")
    parser.add_argument("--features", type=Path, metavar="FILE", help="a cache file, instead of --data and --backbone")
    _add_data(parser, splitting=False)
    _add_backbone(parser)
    settings = parser.add_argument_group("settings of the head (its own defaults apply)")
    for flag, kind in commands.HEAD_SETTINGS.items():
        more = {"action": "store_true", "default": None} if kind is bool else {"type": kind, "metavar": "X"}
        settings.add_argument(flag, **more)
    settings.add_argument("-b", "--batch-size", type=int, metavar="X")
    settings.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting")


def _add_data(parser: _Parser, splitting: bool = True) -> None:
    from ..data import DATASETS, DEFAULT_DATA

    parser.add_argument("--data", default=DEFAULT_DATA, metavar="DATA",
                        help=f"a folder, a CSV file (path,label[,split]), {', '.join(DATASETS)}, or torchvision:NAME "
                             f"(default: {DEFAULT_DATA})")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR")
    if splitting:
        parser.add_argument("--val-fraction", type=float, metavar="X",
                            help="share of the images without a given split that becomes val (default: 0.2)")


def _add_backbone(parser: _Parser, precision: bool = True) -> None:
    from ..backbones import DEFAULT, POOLED, PRECISIONS

    parser.add_argument("--backbone", default=DEFAULT, metavar="NAME",
                        help=f"`pipeline backbones` lists them; timm:NAME too (default: {DEFAULT})")
    parser.add_argument("--weights", metavar="FILE|TAG", help="a weights file, a published tag, or random")
    parser.add_argument("--layer", default=POOLED, metavar="NAME",
                        help="where features are read: a module's name, NAME:mean to average over positions")
    if precision:
        parser.add_argument("--precision", default="float32", metavar="P", help=", ".join(PRECISIONS))
        parser.add_argument("--fast-decode", action="store_true",
                            help="decode JPEG files much larger than needed at a fraction of their size")


def _add_limits(parser: _Parser) -> None:
    from ..data import Limits

    usual = Limits()
    parser.add_argument("--max-bytes", type=int, metavar="N", help=f"largest file read (default: {usual.max_bytes})")
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help=f"largest image decoded (default: {usual.max_pixels})")


def _add_running(parser: _Parser) -> None:
    from ..backbones import ENGINES

    parser.add_argument("-b", "--batch-size", type=int, metavar="N", help="images a forward pass")
    parser.add_argument("-j", "--workers", type=int, metavar="N", help="threads (default: one a core; 0: none more)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, … (default: auto)")
    parser.add_argument("--engine", default="auto", metavar="E", help=f"{', '.join(ENGINES)} (default: auto)")
    if not any("--seed" in action.option_strings for action in parser._actions):
        parser.add_argument("--seed", type=int, default=0, help="of random weights")


def _add_run(parser: _Parser) -> None:
    parser.add_argument("--name", help="of the run (default: from data set, backbone and head or strategy)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)


def _add_sweep(parser: _Parser) -> None:
    group = parser.add_argument_group("choosing settings, and how sure the figures are")
    group.add_argument("--sweep", action="store_true", help="try a grid of settings; the test split takes no part")
    group.add_argument("--grid", action="append", default=[], metavar="NAME=V1,V2,…",
                       help="values to try instead of the head's own (repeatable)")
    group.add_argument("--select-on", default="cv", metavar="cv|val", help="what chooses (default: cv)")
    group.add_argument("--folds", type=int, default=5, metavar="N", help="of the cross-validation (default: 5)")
    group.add_argument("--metric", default="accuracy", metavar="M",
                       help="accuracy, balanced_accuracy, macro_f1 or log_loss (default: accuracy)")
    group.add_argument("--one-standard-error", action="store_true",
                       help="take the simplest candidate within one standard error of the best")
    group.add_argument("--repeats", type=int, default=1, metavar="N", help="train with N seeds and tell the spread")
    group.add_argument("--shots", type=_numbers, metavar="K1,K2,…",
                       help="few-shot figures with so many images a class, as `learning-curve --shots`")


def _add_finetune_settings(parser: _Parser) -> None:
    """One flag a field of `FinetuneSettings`, with its default."""
    from ..finetuning import STRATEGIES, FinetuneSettings

    short = {"batch_size": ["-b"], "workers": ["-j"]}
    for field in dataclasses.fields(FinetuneSettings):
        flags = [*short.get(field.name, []), f"--{field.name.replace('_', '-')}"]
        if field.name == "seed":
            continue
        if isinstance(field.default, bool):
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=None)
        else:
            known = f"{', '.join(STRATEGIES)} " if field.name == "strategy" else ""
            help_ = f"{known}(default: {field.default})"
            parser.add_argument(*flags, type=type(field.default), metavar="X", help=help_)


def _add_cache_commands(verbs: Any) -> None:
    cache = verbs.add_parser("cache", help="list, verify or remove caches")
    cache.set_defaults(parser=cache)
    own = cache.add_subparsers(metavar="ls|verify|rm", required=True, parser_class=_Parser)
    ls = _command(own, "ls", commands.cache_ls, "list the caches")
    verify = _command(own, "verify", commands.cache_verify, "check every bit of caches; exit 1 if any is damaged")
    verify.add_argument("--recompute", type=int, default=0, metavar="N",
                        help="run N random images of each through the backbone again")
    verify.add_argument("--device", default="auto")
    rm = _command(own, "rm", commands.cache_rm, "remove caches")
    rm.add_argument("--keep-newest", action="store_true", help="all but the newest of each data set and backbone")
    rm.add_argument("--unused", action="store_true", help="those that no run was trained on")
    rm.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR")
    rm.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for parser in (verify, rm):
        parser.add_argument("paths", nargs="*", type=Path, metavar="FILE", help="cache files")
    for parser in (ls, verify, rm):
        parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR")
