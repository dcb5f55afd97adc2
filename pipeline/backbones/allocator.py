"""Keeping the C library from giving memory back to the system between layers."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# parameters of glibc's mallopt(3)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


@cache
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
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_TOP_PAD, 64 * 2**20)])
