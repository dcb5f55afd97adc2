"""What fits into memory: decided before anything large is read."""

from __future__ import annotations

import math

from .errors import CacheError
from .memory import available_memory
from .store import FeatureCache

SHARE = 0.75  # of the memory that is available now, where no limit is given
COPIES = 4  # of the features as float32 while a head trains: as read, scaled, centred, and temporaries


def memory_limit(max_memory: int | None) -> int:
    """Return the bytes that may be taken: as many as were asked for, or three quarters of what is available."""
    return int(SHARE * available_memory()) if max_memory is None else max_memory


def must_stream(cache: FeatureCache, max_memory: int | None) -> bool:
    """Tell whether training on a cache's train and val rows at once would take more memory than it may.

    Parameters
    ----------
    cache : FeatureCache
    max_memory : int or None
        Bytes; by default as `memory_limit`.
    """
    values = (len(cache.indices("train")) + len(cache.indices("val"))) * math.prod(cache.shape[1:])
    return COPIES * 4 * values > memory_limit(max_memory)


def require_room_for_sums(cache: FeatureCache, max_memory: int | None) -> None:
    """Refuse features so wide that the (D, D) matrices of most streamed heads would not fit.

    Raises
    ------
    CacheError
    """
    most = memory_limit(max_memory)
    width = cache.shape[-1]
    if COPIES * 8 * width**2 > most:
        need, may = f"{COPIES * 8 * width**2 / 1e9:.1f} GB with copies", f"{most / 1e9:.1f} GB"
        raise CacheError(f"Rows of {width} features need matrices of {width} x {width}, {need}: more than the {may} "
                         "that may be used. Take linear, nearest-centroid or gaussian-nb, or raise --max-memory.")
