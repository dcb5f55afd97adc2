"""Which images need a forward pass, in which blocks, and where the rows of all others are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .disk import Disk
from .keys import as_digests, as_keys, find, from_hex
from .record import BrokenRecordError, read_record, write_record
from .sources import RowSource
from .spec import Spec

UNKNOWN, FAILED = -1, -2


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes
    ----------
    to_compute : (n,) int64 array
        Listing positions of the distinct images that still need a forward pass, in listing order.
    blocks : dict
        Block number to the listing positions of its images: what is computed, and committed, together.
        Fixed by the first run's plan, so that a resumed run forms the same batches.
    reused : int
        Listed images whose rows were found, in whatever place.
    resumed : int
        Distinct images among them that an interrupted run had committed.
    duplicates : int
        Listed images that are byte for byte another listed image; they share its row.
    known_failures : int
        Listed images that failed before, under the same spec; they are not tried again.
    """

    to_compute: np.ndarray
    blocks: dict[int, np.ndarray]
    reused: int
    resumed: int
    duplicates: int
    known_failures: int


class Ledger:
    """What is known of each distinct image of a listing.

    Attributes
    ----------
    keys : (U,) array
        Distinct digests, ascending.
    first : (U,) int64 array
        Where each is listed first.
    inverse : (N,) int64 array
        The distinct image behind each listed one.
    source, row : (U,) int arrays
        Number of the source that holds its row (or `UNKNOWN`, `FAILED`), and the row there.
    reasons : dict
        Position among `keys` to the reason why that image failed.
    passing : set
        Failures that are not remembered.
    """

    def __init__(self, digests: np.ndarray):
        self.keys, self.first, self.inverse = np.unique(as_keys(digests), return_index=True, return_inverse=True)
        self.source = np.full(len(self.keys), UNKNOWN, np.int32)
        self.row = np.zeros(len(self.keys), np.int64)
        self.reasons: dict[int, str] = {}
        self.passing: set[int] = set()
        self.sources: list[RowSource] = []

    def learn(self, source: RowSource, *, failures: bool = True) -> None:
        """Note what `source` holds of the images that are still unknown."""
        at, there = find(self.keys, source.keys)
        rows = np.flatnonzero(there & (self.source[at] == UNKNOWN))
        rows = rows[source.sound(rows)][::-1]  # of duplicates within a source, the first is written last and stays
        self.source[at[rows]], self.row[at[rows]] = len(self.sources), rows
        self.sources.append(source)
        if failures:
            self._learn_failures(source)

    def _learn_failures(self, source: RowSource) -> None:
        at, there = find(self.keys, from_hex(source.failed))
        passing = set(getattr(source, "passing", ()))
        for position, known, (digest, reason) in zip(at.tolist(), there, source.failed.items(), strict=True):
            if known and self.source[position] == UNKNOWN:
                self.source[position], self.reasons[position] = FAILED, reason
                self.passing |= {position} if digest in passing else set()

    def forget(self, at: np.ndarray) -> None:
        """Make these images unknown again."""
        self.source[at] = UNKNOWN
        for position in at.tolist():
            self.reasons.pop(position, None)

    @property
    def unknown(self) -> np.ndarray:
        """Positions of the unknown images, in the order of their first listing."""
        at = np.flatnonzero(self.source == UNKNOWN)
        return at[np.argsort(self.first[at], kind="stable")]

    def read(self, at: np.ndarray) -> np.ndarray:
        """Return the rows of distinct images, which must be known."""
        numbers, rows = self.source[at], self.row[at]
        parts = [(numbers == number, self.sources[number]) for number in np.unique(numbers)]
        if len(parts) == 1:
            return parts[0][1].read(rows)
        found = [(mask, source.read(rows[mask])) for mask, source in parts]
        out = np.empty((len(at), *found[0][1].shape[1:]), found[0][1].dtype)
        for mask, part in found:
            out[mask] = part
        return out


@dataclass(frozen=True)
class BlockPlan:
    """The images to compute and their division into blocks, as kept on disk beside the shards.

    Attributes
    ----------
    keys : (n,) array
        Distinct images, in the order in which they are computed.
    size : int
        Images a block.
    """

    spec: Spec
    keys: np.ndarray
    size: int
    root: str = ""
    id: str = field(init=False)

    def __post_init__(self) -> None:
        text = f"{self.spec.sha256} {self.size} ".encode() + as_digests(self.keys).tobytes()
        object.__setattr__(self, "id", hashlib.sha256(text).hexdigest()[:32])

    def blocks(self) -> list[np.ndarray]:
        """Return the keys of each block."""
        return [self.keys[start : start + self.size] for start in range(0, len(self.keys), self.size)]

    def save(self, disk: Disk, path: Path) -> None:
        """Write the plan, durably."""
        header = {"spec_sha256": self.spec.sha256, "size": self.size, "root": self.root}
        write_record(disk, path, header, {"digests": as_digests(self.keys)})

    @classmethod
    def load(cls, path: Path, spec: Spec) -> BlockPlan | None:
        """Read a plan; None if there is none that is sound and for this spec."""
        try:
            header, arrays = read_record(path)
            sound = header["spec_sha256"] == spec.sha256 and header["size"] > 0
            return cls(spec, as_keys(arrays["digests"]), header["size"], header["root"]) if sound else None
        except (BrokenRecordError, KeyError, TypeError):
            return None


def shard_size(images: int, row_bytes: int) -> int:
    """Return how many images share a shard.

    Few images make small shards, so that every worker has some and little is lost; many make shards of
    up to 1024 images or 32 MiB, so that the fsyncs cost nothing to speak of.
    """
    wanted = -(-images // 64)
    bound = max(1, min(1024, (32 << 20) // row_bytes))
    return min(bound, max(32, -(-wanted // 32) * 32))
