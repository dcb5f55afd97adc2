"""Ctrl-C in the middle of a step would leave weights half updated: it waits for the step's end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the user, or a cluster about to take the machine back, asked for an end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: object) -> None:
        if self.asked:  # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Note SIGINT and SIGTERM instead of acting on them, while the context lasts.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
