"""Decoding ahead: the same results as without, each made once, and no more of them than memory is meant for."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from pipeline.data import UnreadableImageError
from pipeline.engines import embedding as ahead
from pipeline.engines.embedding import Prefetcher


class Decoding:
    """Counts its calls; image 3 cannot be read."""

    def __init__(self, wait: float = 0):
        self.calls, self.wait = Counter(), wait

    def __call__(self, index: int) -> np.ndarray:
        self.calls[index] += 1
        time.sleep(self.wait)
        if index == 3:
            raise UnreadableImageError("broken")
        return np.full((1, 10, 10, 3), index, np.uint8)


def results(pixels: Prefetcher, indices: range) -> list[int]:
    found = []
    for index in indices:
        try:
            found.append(int(pixels(index).max()))
        except UnreadableImageError:
            found.append(-1)
    return found


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_image_is_decoded_once_whoever_asks_first(threads):
    decoding = Decoding(wait=0.002)
    with Prefetcher(decoding, range(12), threads) as pixels:
        time.sleep(0.01)
        assert (len(decoding.calls) > 0) == (threads > 0)
    assert results(pixels, range(20)) == [0, 1, 2, -1, *range(4, 20)]
    assert decoding.calls == Counter(range(20))


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(ahead, "MOST_BYTES", 5 * 300)
    decoding = Decoding()
    with Prefetcher(decoding, range(100), 2) as pixels:
        for thread in pixels._threads:
            thread.join(10)
        assert 5 <= len(decoding.calls) <= 7  # image 3 holds nothing, and two threads may overshoot by one


def test_an_error_meanwhile_ends_the_threads():
    with pytest.raises(ValueError, match="no such network"), Prefetcher(Decoding(0.001), iter(range(10**9)), 2):
        raise ValueError("no such network")
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
