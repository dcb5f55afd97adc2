"""Flags that several commands share, and the parser that explains what was mistyped."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..core.errors import PipelineError, UnknownNameError, suggestion

HEAD_SETTINGS: dict[str, tuple[Any, str, str]] = {  # the tutorial's names; any other setting goes through --set
    "--scaling": (str, "KIND", "what is done to features first: none, standardize, l2 or pca-whiten: all heads "
                               "(standardize for linear, mlp, knn, gaussian-nb; none for the others)"),
    "--class-weight": (str, "KIND", "balanced: each class counts alike: all but knn, nearest-centroid (default: each "
                                    "image does)"),
    "--C": (str, "VALUE", "inverse strength of the penalty: logistic, linear-svm (default: chosen on train), svm-rbf "
                          "(10)"),
    "--epochs": (int, "N", "passes over the training rows: linear (25), mlp (30)"),
    "--lr": (float, "VALUE", "learning rate: linear, mlp (default: by the optimiser)"),
    "--momentum": (float, "VALUE", "of SGD: linear, mlp (0.9)"),
    "--weight-decay": (float, "VALUE", "linear (0), mlp (0.01)"),
    "--label-smoothing": (float, "VALUE", "share of each target spread over all classes: linear, mlp (0)"),
    "--optimizer": (str, "NAME", "sgd, adamw or lbfgs: linear (sgd); sgd or adamw: mlp (adamw)"),
    "--schedule": (str, "NAME", "of the learning rate: step, cosine or constant: linear, mlp (cosine)"),
    "--step-size": (int, "N", "epochs between steps of the schedule step: linear, mlp (7)"),
    "--gamma": (float, "VALUE", "factor of each step of the schedule step: linear, mlp (0.1); of svm-rbf, the kernel's "
                                "inverse squared width (by the features)"),
    "--resample": (bool, "", "draw training rows with each class equally often: linear, mlp"),
}
OTHER_SETTINGS = (
    "k, metric, votes, T of knn; alpha of ridge; shrinkage of lda; smoothing of gaussian-nb; hidden, dropout of mlp; "
    "gamma_factor of svm-rbf; n_estimators of random-forest; max_features, min_samples_leaf of random-forest and "
    "hist-gradient-boosting; learning_rate, max_leaf_nodes, l2_regularization of hist-gradient-boosting; max_iter of "
    "logistic, linear-svm and hist-gradient-boosting; device of linear and mlp"
)

BACKENDS = ("local", "dask")
TABLE = ("path", "label", "split", "images")  # what can be said of a table, see `pipeline.data.tables`


class Parser(argparse.ArgumentParser):
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
        if getattr(options, "place", None) is not None:
            if options.data is not None:
                raise PipelineError(f"Give the data once: {options.place!r}, or --data {options.data!r}.")
            options.data = options.place
        options.builtin = getattr(options, "usual_data", None) is not None and options.data is None
        if options.builtin:
            options.data = options.usual_data
        said = {name: value for name in TABLE if (value := getattr(options, f"table_{name}", None)) is not None}
        if said:
            options.data += f"[{','.join(f'{name}={value}' for name, value in said.items())}]"
        if getattr(options, "limit", None) is not None:
            options.data = f"{options.data}[:{options.limit}]"
        return options


def add_command(verbs: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> Parser:
    """Add a command with its summary, and the flag ``--json`` that all have."""
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return parser


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between."""
    return [int(number) for number in text.split(",")]


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def memory(text: str) -> int:
    """Read an amount of memory, such as 4GB, 512MB or 1.5 GiB, as bytes."""
    found = re.fullmatch(r"([0-9.]+) *([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    try:
        number, unit, binary = found.groups() if found else ("", "", "")
        size = float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " ")
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write it like 4GB or 512MB")
    return int(size)


def add_head(parser: Parser) -> None:
    """Which features, which head, and its settings."""
    from ..heads import HEADS

    parser.add_argument("--head", default="logistic", metavar="NAME",
                        help=f"{', '.join(HEADS)}; several with commas between, or all (default: logistic)")
    add_features(parser)
    add_data(parser, splitting=False)
    add_backbone(parser)
    add_views(parser)
    settings = parser.add_argument_group("settings of the head (those that have one, each with its default)")
    for flag, (kind, metavar, words) in HEAD_SETTINGS.items():
        more = {"action": "store_true", "default": None} if kind is bool else {"type": kind, "metavar": metavar}
        settings.add_argument(flag, help=words, **more)
    settings.add_argument("-b", "--batch-size", type=int, metavar="N", help="rows a step: linear (32), mlp (64)")
    settings.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                          help=f"any other setting (repeatable): {OTHER_SETTINGS}")


def add_features(parser: Parser) -> None:
    """Which cache files, where not those of --data and --backbone."""
    parser.add_argument("--features", type=Path, nargs="+", metavar="FILE",
                        help="a cache file, instead of --data and --backbone; of several, the features of the same "
                             "images side by side")


def add_data(parser: Parser, splitting: bool = True, positional: bool = True) -> None:
    """Which images: ``--data``, ``--cache-dir`` and, where splits can be decided, ``--val-fraction``."""
    from ..data import DATASETS, DEFAULT_DATA

    parser.set_defaults(usual_data=DEFAULT_DATA)
    if positional:
        parser.add_argument("place", nargs="?", metavar="DATA", help="the same as --data DATA")
    parser.add_argument("--data", metavar="DATA",
                        help=f"a folder, a CSV file (path,label[,split]), .zip, .tar or .parquet files, a URL, "
                             f"{', '.join(DATASETS)}, or torchvision:NAME "
                             f"(default: {DEFAULT_DATA})")
    parser.add_argument("--limit", type=int, metavar="N",
                        help="only the first N images, of each class and split in proportion; the same as DATA[:N]")
    for kind in TABLE[:3]:
        parser.add_argument(f"--{kind}-column", dest=f"table_{kind}", metavar="NAME",
                            help=f"the column of a table that holds the {kind} (default: by the usual names)")
    parser.add_argument("--image-dir", dest="table_images", metavar="DIR",
                        help="where the paths of a table start (default: the table's folder); the four are the same as "
                             "DATA[path=NAME,label=NAME,split=NAME,images=DIR]")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), metavar="DIR",
                        help="where features and downloads are kept (default: cache)")
    parser.add_argument("--dataset-name", metavar="NAME",
                        help="by which caches and runs are filed (default: the folder's name, told apart from another "
                             "folder's of that name by its place)")
    if splitting:
        parser.add_argument("--val-fraction", type=float, metavar="SHARE",
                            help="share of the images without a given split that becomes val, in each class (default: "
                                 "0.2)")
        parser.add_argument("--test-fraction", type=float, metavar="SHARE",
                            help="share that becomes test, likewise (default: 0)")
        parser.add_argument("--group-duplicates", action="store_true",
                            help="keep images that look the same in one split (reads every image once more)")


def splitting_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that say how images without a given split are divided."""
    return {"val_fraction": options.val_fraction, "test_fraction": options.test_fraction,
            "group_duplicates": options.group_duplicates}


def add_backbone(parser: Parser, precision: bool = True) -> None:
    """Which features: backbone, weights, layer and precision."""
    from ..backbones import DECODERS, DEFAULT, POOLED, PRECISIONS

    parser.add_argument("--backbone", default=DEFAULT, metavar="NAME",
                        help=f"`pipeline backbones` lists them; timm:NAME too (default: {DEFAULT})")
    parser.add_argument("--weights", metavar="FILE|TAG", help="a weights file, a published tag, or random")
    parser.add_argument("--resize", type=int, default=0, metavar="N",
                        help="resize images to N pixels before the crop (default: as the weights were published with)")
    parser.add_argument("--layer", default=POOLED, metavar="NAME",
                        help="where features are read: a module's name (`pipeline summary` lists them); NAME:mean, "
                             ":max, :meanmax over positions, NAME:cls of a transformer; A+B side by side; stages: "
                             "pooled, and mean and maximum of every stage (default: pooled)")
    if precision:
        parser.add_argument("--precision", default="float32", metavar="P", help=", ".join(PRECISIONS))
        parser.add_argument("--fast-decode", action="store_true",
                            help="decode JPEG files much larger than needed at a fraction of their size")
        parser.add_argument("--decoder", default="pillow", metavar="D",
                            help=f"of JPEG files: {', '.join(DECODERS)} (on an NVIDIA GPU, for files you trust)")


def add_views(parser: Parser) -> None:
    """How many views of each image, and how they are drawn."""
    from ..data.augmentation import AUGMENTATIONS

    parser.add_argument("--views", type=int, metavar="K",
                        help="views of each image, the plain one and K - 1 random ones (default: the plain one alone)")
    parser.add_argument("--augmentation", metavar="NAME",
                        help=f"what draws them: {', '.join(AUGMENTATIONS)} (default: tutorial)")
    parser.add_argument("--view-seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")


def add_tta(parser: Parser) -> None:
    """What predictions look at."""
    parser.add_argument("--tta", action="store_true",
                        help="average probabilities over all views of each image; of features with --views")


def add_limits(parser: Parser) -> None:
    """What one image may cost."""
    from ..data import Limits

    usual = Limits()
    parser.add_argument("--max-bytes", type=int, metavar="N", help=f"largest file read (default: {usual.max_bytes})")
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help=f"largest image decoded (default: {usual.max_pixels})")


def limits_of(options: argparse.Namespace) -> Any:
    """Return what one image may cost, as the flags say."""
    from ..data import Limits

    given = {name: value for name in ("max_bytes", "max_pixels") if (value := getattr(options, name)) is not None}
    return Limits(**given)


def add_running(parser: Parser, seed: bool = True) -> None:
    """How the network is run: batch size, workers, device, engine."""
    from ..engines import ENGINES

    parser.add_argument("-b", "--batch-size", type=int, metavar="N", help="images a forward pass")
    parser.add_argument("-j", "--workers", type=int, metavar="N", help="threads (default: one a core; 0: none more)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, … (default: auto)")
    parser.add_argument("--engine", default="auto", metavar="E", help=f"{', '.join(ENGINES)} (default: auto)")
    if seed and not any("--seed" in action.option_strings for action in parser._actions):
        parser.add_argument("--seed", type=int, default=0, help="of random weights")


def add_cluster(parser: Parser) -> None:
    """Where the work is done: here, or on a cluster."""
    parser.add_argument("--backend", default="local", metavar="B", help=f"{', '.join(BACKENDS)} (default: local)")
    parser.add_argument("--scheduler", metavar="ADDRESS",
                        help="of the Dask cluster for --backend dask, such as tcp://host:8786")


def scheduler_of(options: argparse.Namespace) -> str | None:
    """Return the address of the cluster that the flags name; None for this machine."""
    if options.backend not in BACKENDS:
        raise UnknownNameError("backend", options.backend, BACKENDS)
    if options.backend == "dask" and not options.scheduler:
        raise PipelineError("--backend dask needs --scheduler, the address that `dask scheduler` prints, such as "
                            "tcp://host:8786.")
    if options.backend != "dask" and options.scheduler:
        raise PipelineError(f"--scheduler {options.scheduler} is for --backend dask, not for {options.backend!r}.")
    return options.scheduler


def add_run(parser: Parser) -> None:
    """Where the result goes, and the seed."""
    parser.add_argument("--name", help="of the run (default: from data set, backbone and head or strategy; a number "
                                       "behind it where there is one with other settings)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of that name, whatever its settings")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where runs are written (default: runs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")


def add_sweep(parser: Parser) -> None:
    """How settings are chosen, and how often training is repeated."""
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
    group.add_argument("--calibrate", nargs="?", const="cv", metavar="cv|val",
                       help="make probabilities honest by cross-validation on train (default) or on val, and learn "
                            "which labels are possible and which images are strange: `predict` tells")
    group.add_argument("--coverage", type=float, default=0.9, metavar="SHARE",
                       help="how often --calibrate's sets of possible labels hold the truth (default: 0.9)")
    group.add_argument("--repeats", type=int, default=1, metavar="N", help="train with N seeds and tell the spread")
    parser.add_argument("--max-memory", type=memory, metavar="SIZE",
                        help="such as 4GB: features that would take more in training are streamed from the file "
                             "(default: three quarters of the available memory)")
    group.add_argument("--shots", type=numbers, metavar="K1,K2,…",
                       help="few-shot figures with so many images a class, as `learning-curve --shots`")


def described(settings: type) -> dict[str, str]:
    """Return what a class's docstring says of each parameter, for ``--help``: its choices, and its description."""
    found: dict[str, str] = {}
    section = (settings.__doc__ or "").split("Parameters\n")[1].split("\n\n")[0]
    for names, kind, words in re.findall(r"^    (\w[\w, ]*) : (.*)\n((?:        .*\n?)*)", section, re.M):
        choices = ", ".join(re.findall(r"'([^']+)'", kind)) + ": " if kind.startswith("{") else ""
        text = " ".join(words.replace("`", "").split()).rstrip(".")
        text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
        found |= dict.fromkeys(names.split(", "), f"{choices}{text}")
    return found


def add_finetune_settings(parser: Parser) -> None:
    """One flag a field of `FinetuneSettings`, with its default."""
    from ..data.augmentation import AUGMENTATIONS
    from ..finetuning import DEFAULT_PRESET, PRESETS, STRATEGIES, FinetuneSettings

    parser.add_argument("--preset", metavar="NAME", default=DEFAULT_PRESET,
                        help=f"{', '.join(PRESETS)}: settings that go together; other flags replace them "
                             f"(default: {DEFAULT_PRESET})")
    short, about = {"batch_size": ["-b"], "workers": ["-j"]}, described(FinetuneSettings)
    for field in dataclasses.fields(FinetuneSettings):
        flags = [*short.get(field.name, []), f"--{field.name.replace('_', '-')}"]
        if field.name == "seed":
            continue
        usual = PRESETS[DEFAULT_PRESET].get(field.name, field.default)
        usual = "none" if usual == "" else usual
        words = f"{about[field.name]} (default: {usual})".replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(*flags, action=argparse.BooleanOptionalAction, default=None, help=words)
        else:
            metavar = {int: "N", float: "VALUE"}.get(type(field.default), "NAME")
            named = {"strategy": list(STRATEGIES), "augmentation": list(AUGMENTATIONS)}.get(field.name, [])
            known = f"{', '.join(named)}: " if named else ""
            parser.add_argument(*flags, type=type(field.default), metavar=metavar, help=known + words)
