"""Each epoch's figures for TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PipelineError


@contextmanager
def tensorboard(folder: str) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Yield what takes an epoch's line of the history; without a folder it does nothing.

    Raises
    ------
    PipelineError
        If the package tensorboard is not installed, or the folder cannot be written.
    """
    if not folder:
        yield lambda line: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder)
    except ImportError as error:
        raise PipelineError(f"--tensorboard needs the package tensorboard: {sys.executable} -m pip install tensorboard"
                            ) from error
    except OSError as error:
        raise PipelineError(f"Cannot write to the TensorBoard folder {folder!r}: {error.strerror or error}.") from error

    def write(line: dict[str, Any]) -> None:
        for name in line.keys() - {"epoch"}:
            writer.add_scalar(name, line[name], line["epoch"])
        writer.flush()

    with writer:
        yield write
