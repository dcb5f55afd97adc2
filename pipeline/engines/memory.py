"""An engine's memory: batches that fit into an accelerator, and what the C library keeps instead of giving it back."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ..core.errors import PipelineError

CPU_BATCH = 8  # on a CPU larger batches gain nothing, and their temporaries leave the caches
CUDA_BATCH = 128  # of more the network gains nothing, and of fewer the thread that starts them has more to do
USUAL_BATCH = 64  # images a batch where nothing is known
# parameters of glibc's mallopt(3), our values, and its defaults
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
USUAL_SETTINGS = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 1024, TOP_PAD: 0}


class FittingBatches:
    """A function of a batch, called on parts of it that fit into memory.

    Parameters
    ----------
    run : callable
        From an array of N images to one of N rows; may raise `torch.OutOfMemoryError`.
    notes : list of str
        Told, for the user, when memory has run out.

    Attributes
    ----------
    notes : list of str
    most : int or None
        Images that are tried at once; None until memory has run out.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], notes: list[str]):
        self.run = run
        self.most: int | None = None
        self.notes = notes

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Apply the function to the whole batch, in halves of halves where need be.

        Raises
        ------
        PipelineError
            If not even one image fits.
        """
        size = min(len(batch), self.most or len(batch))
        while (rows := self._in_parts(batch, size)) is None:
            size = self.halve(size)
        return rows

    def _in_parts(self, batch: np.ndarray, size: int) -> np.ndarray | None:
        import torch

        try:
            return np.concatenate([self.run(batch[start : start + size]) for start in range(0, len(batch), size)])
        except torch.OutOfMemoryError:
            return None  # only outside of `except` is what the failed attempt held free again

    def halve(self, size: int) -> int:
        """Return the next smaller size of batch, and tell the user."""
        import torch

        if size == 1:
            raise PipelineError("The accelerator's memory does not hold one image's forward pass. Use --device cpu, a "
                                "smaller --backbone, or free memory on the device.")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.most = min(self.most or size, size // 2)
        self.notes[:] = [f"The accelerator's memory was too small for a batch of {size}; went on with {self.most}."]
        return self.most


def filled(batch: np.ndarray, size: int) -> np.ndarray:
    """Return a batch of `size` images that begins with these, for a network that is compiled for no other size."""
    if len(batch) == size:
        return batch
    full = np.zeros((size, *batch.shape[1:]), batch.dtype)
    full[: len(batch)] = batch
    return full


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, where the C library is glibc.

    Each layer of a network allocates a tensor of megabytes and frees it soon after. By default glibc returns
    such blocks to the system at once, so that every layer faults its pages in anew: a quarter to a half of the
    time of a forward pass on a CPU. The price is that the process never shrinks below its peak.

    Returns
    -------
    bool
        Whether that was done; elsewhere nothing happens.
    """
    return _set(KEEPING)


@contextmanager
def kept_memory(on_cpu: bool) -> Iterator[None]:
    """Keep freed memory for the length of a `with` block, as for a training on a CPU, and give it back afterwards."""
    if not (on_cpu and keep_freed_memory()):
        yield
        return
    try:
        yield
    finally:
        _set(USUAL_SETTINGS)
        ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(option, value) for option, value in values.items()]  # each, also where one is refused
    return all(taken)
