"""The command that opens a page to label photos on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .commands import backbone_of, note_builtin
from .flags import add_backbone, add_command, add_data, add_limits, add_running, limits_of
from .printing import print_beside_bars, print_json, print_notes, progress_bars


def add_commands(verbs: Any) -> None:
    """Add this command to the parser's."""
    parser = add_command(verbs, "label", label, "label photos on a page in the browser, on which every answer retrains "
                                                "the head")
    add_data(parser, splitting=False)
    add_backbone(parser)
    parser.add_argument("--classes", metavar="A,B,C", default="", help="known beforehand, with commas between")
    parser.add_argument("--labels", type=Path, metavar="FILE",
                        help="the table of answers, which is gone on with (default: NAME-labels.csv)")
    parser.add_argument("--strategy", metavar="NAME",
                        help="what is asked for next: badge, margin, need, typical, random (default: badge)")
    parser.add_argument("--random-share", type=float, default=0.2, metavar="SHARE",
                        help="share of the photos drawn at random, on which accuracy is estimated (default: 0.2)")
    parser.add_argument("--export", type=Path, metavar="DIR",
                        help="only put the labelled photos into class folders below DIR, as links")
    parser.add_argument("--copy", action="store_true", help="with --export: as copies")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page (default: any free one)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR",
                        help="where the trained run is written (default: runs)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    add_running(parser, seed=False)
    add_limits(parser)


def label(options: argparse.Namespace) -> None:
    from ..backbones import DEFAULT
    from ..labelling import LabelSession
    from ..labelling.server import LabelServer
    from ..stage_one.extraction import extract

    note_builtin(options)
    backbone = backbone_of(options)
    done = extract(options.data, backbone, limits=limits_of(options), cache_dir=options.cache_dir,
                   dataset_name=options.dataset_name, device=options.device, batch_size=options.batch_size,
                   workers=options.workers, engine=options.engine, progress=progress_bars(), tell=print_beside_bars)
    table = options.labels or Path(f"{done.path.parent.name}-labels.csv")
    flags = [] if options.backbone == DEFAULT else ["--backbone", options.backbone]
    where = {"backbone": backbone, "cache_dir": options.cache_dir, "runs_dir": options.runs_dir, "flags": flags}
    asking = {"strategy": options.strategy} if options.strategy else {}
    with done.open() as cache:
        session = LabelSession(cache, table, classes=[name for name in options.classes.split(",") if name.strip()],
                               random_share=options.random_share, seed=options.seed, **asking)  # fmt: skip
    with session:
        if options.export:
            count = session.export(options.export, options.copy)
            return print_json({"path": str(options.export), "images": count}) if options.json else print(
                f"{options.export}: {count:,} photos in class folders")
        server = LabelServer(session, where, options.port)
        if session.gone:
            print_notes([f"{session.gone} answers are of photos that are not here any more; the table keeps them."])
        if options.json:
            print_json({"address": server.address, "table": str(session.file.path)})
        else:
            print(f"{done.rows:,} photos, {session.answered:,} answered; answers go to {session.file.path}")
            print(f"open {server.address} in a browser; Ctrl-C ends it, and the same command goes on")
        sys.stdout.flush()
        try:
            server.serve()
        finally:
            server.close()
