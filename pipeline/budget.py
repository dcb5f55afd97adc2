"""What fits into memory: decided before anything large is read."""

from __future__ import annotations

import math
import os
from pathlib import Path

from .errors import CacheError
from .store import FeatureCache

SHARE = 0.75  # of the memory that is available now, where no limit is given
COPIES = 4  # of the features as float32 while a head trains: as read, scaled, centred, and temporaries


def must_stream(cache: FeatureCache, max_memory: int | None) -> bool:
    """Tell whether training on a cache's train and val rows at once would take more memory than it may.

    Parameters
    ----------
    cache : FeatureCache
    max_memory : int or None
        Bytes; by default three quarters of what is available.
    """
    values = (len(cache.indices("train")) + len(cache.indices("val"))) * math.prod(cache.shape[1:])
    return COPIES * 4 * values > (SHARE * available_memory() if max_memory is None else max_memory)


def require_room_for_sums(cache: FeatureCache, max_memory: int | None) -> None:
    """Refuse features so wide that the (D, D) matrices of most streamed heads would not fit.

    Raises
    ------
    CacheError
    """
    most = SHARE * available_memory() if max_memory is None else max_memory
    width = cache.shape[-1]
    if COPIES * 8 * width**2 > most:
        need, may = f"{COPIES * 8 * width**2 / 1e9:.1f} GB with copies", f"{most / 1e9:.1f} GB"
        raise CacheError(f"Rows of {width} features need matrices of {width} x {width}, {need}: more than the {may} "
                         "that may be used. Take linear, nearest-centroid or gaussian-nb, or raise --max-memory.")


def available_memory() -> int:
    """Return how many bytes this process may still take: the machine's, or its container's where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0].isdigit():
        found.append(max(0, int(limit[0]) - int(used[0])))
    return min(found)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
