"""Keeping the C library from giving memory back to the system between layers."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# parameters of glibc's mallopt(3), our values, and its defaults
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 * 2**20}
USUAL = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 * 1024, TOP_PAD: 0}


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
        _set(USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(option, value) for option, value in values.items()]  # each, also where one is refused
    return all(taken)
