"""Which rows exist, looked up without touching anything: no lock, nothing set aside, nothing written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .ledger import FAILED, Ledger
from .paths import CachePlaces
from .record import BrokenRecordError
from .sources import Shard, open_sources, parts_among
from .spec import Spec


@dataclass(frozen=True)
class Survey:
    """What is there for a listing.

    Attributes
    ----------
    to_compute : (n,) int64 array
        Listing positions of the distinct images without a row.
    listed, reused, duplicates, known_failures : int
        As in `Plan`.
    in_parts : int
        Listed images whose row lies in a part of this very cache, which is not written again.
    row_bytes : int
        Size of the rows that were found; 0 if none was.
    """

    to_compute: np.ndarray
    listed: int
    reused: int
    duplicates: int
    known_failures: int
    in_parts: int
    row_bytes: int

    def room(self, row_bytes: int) -> int:
        """Return the bytes that a run writes: the pending rows' shards, and the complete file beside them."""
        written = len(self.to_compute) + self.listed - self.in_parts
        return written * row_bytes + self.listed * 300 + (1 << 20)


def survey(path: Path, spec: Spec, digests: np.ndarray, *, retry_failed: bool = False) -> Survey:
    """Look for the rows of images, by their digests (N, 16), wherever `CacheWriter.plan` does."""
    ledger, places = Ledger(digests), CachePlaces(path)
    try:
        for file in (path, *places.siblings(), *places.others(), *places.set_aside()):
            for source in open_sources(file, spec):
                ledger.learn(source, failures=not retry_failed)
        for shard in places.shards():
            with suppress(BrokenRecordError):
                ledger.learn(Shard(shard, spec), failures=not retry_failed)
        state = ledger.state
        missing = np.isin(ledger.keys, ledger.unknown)
        parts = list(parts_among(ledger.sources, places))
        return Survey(
            to_compute=np.sort(ledger.first[missing]),
            listed=len(ledger.image),
            reused=int((state >= 0).sum()),
            duplicates=len(ledger.image) - len(ledger.keys),
            known_failures=int((state == FAILED).sum()),
            in_parts=int(np.isin(state, parts).sum()),
            row_bytes=ledger.kind.bytes if ledger.kind else 0,
        )
    finally:
        ledger.close()
