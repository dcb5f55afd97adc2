"""Running commands: in this process, or each as if it were typed."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..errors import PipelineError


class StepFailedError(PipelineError):
    """A step failed; it has said why."""


def in_this_process(words: Sequence[str]) -> str:
    """Run a command and return what it printed."""
    from . import DONE, main

    with redirect_stdout(io.StringIO()) as said:
        if (code := main(words)) != DONE:
            raise _failed(words, code)
    return said.getvalue()


def in_own_process(words: Sequence[str]) -> str:
    """Run a command as if it were typed: it starts, imports and ends by itself, so its seconds are a user's."""
    command = [sys.executable, "-m", __package__.partition(".")[0], *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process, _passed_on(process):
        said, _ = process.communicate()
    if process.returncode:
        raise _failed(words, process.returncode)
    return said


@contextmanager
def _passed_on(process: subprocess.Popen) -> Any:
    """Let a step end in its own way, with its checkpoint written: Ctrl-C reaches it by itself, SIGTERM through us."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _failed(words: Sequence[str], code: int) -> BaseException:
    if code in (130, -signal.SIGINT, -signal.SIGTERM):
        return KeyboardInterrupt("the step says what it kept")
    error = StepFailedError(f"`pipeline {words[0]}` failed, see above.")
    error.exit_code = code
    return error
