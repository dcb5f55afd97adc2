"""The command line: words to function calls, results to text. The only room that prints.

Exit codes: 0 done; 1 a check that was asked for failed; 2 the user can mend it (one line ``error: …``);
75 another process holds that cache or run; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from ..core.errors import PipelineError
from ..core.machine import installed
from .parser import command_parser
from .printing import PrintedLog, printable
from .recipes.run import add_commands

DONE, INTERRUPTED = 0, 130
KEPT = "what is done is kept; the same command goes on from there"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command. Imports nothing heavy: ``--help`` answers at once."""
    parser, verbs = command_parser()
    add_commands(verbs)
    parser.add_argument("--version", action="version", version=f"%(prog)s {installed('image-feature-pipeline')}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    # read when torch is imported: threads that wait by spinning make a busy machine several times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe may know fewer characters than names of classes have
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = build_parser()
        if not (sys.argv[1:] if arguments is None else arguments):
            parser.print_help()
            return DONE
        options = parser.parse_args(arguments)
        with PrintedLog("pipeline.backbones", "pipeline.reports"):
            result = options.command(options)
        sys.stdout.flush()
        return DONE if result is None else result
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print(f"interrupted: {str(stopped) or KEPT}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone, as `head` does; without this Python complains once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        # another user's folder, a share that is gone: not what any code foresees everywhere, and the user's to mend
        print(f"error: {printable(error.filename)}: {error.strerror}.", file=sys.stderr)
        return PipelineError.exit_code
