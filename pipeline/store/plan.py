"""What a run has to compute, in which blocks; kept on disk so that a resumed run forms the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .disk import Disk
from .keys import as_digests, as_keys
from .record import BrokenRecordError, Record, write_record
from .spec import Spec


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes
    ----------
    to_compute : (n,) int64 array
        Listing positions of the distinct images that need a forward pass, in listing order.
    blocks : list of int64 arrays
        The same, divided: the images of a block are computed, and committed, together. The division was
        fixed by the first of several interrupted runs, so rows do not depend on where they were interrupted.
    reused : int
        Listed images whose rows were found, wherever it was.
    resumed : int
        Distinct images among them whose rows an interrupted run had committed.
    duplicates : int
        Listed images that are, byte for byte, another listed image; they share its row.
    known_failures : int
        Listed images that failed before under the same spec; they are not tried again.
    """

    to_compute: np.ndarray
    blocks: list[np.ndarray]
    reused: int
    resumed: int
    duplicates: int
    known_failures: int


class BlockPlan:
    """The images to compute and their division into blocks.

    Parameters
    ----------
    spec : Spec
    keys : (n,) array
        Digests of distinct images, in the order in which they are computed.
    size : int
        Images a block.

    Attributes
    ----------
    id : str
        Equal plans have equal ones.
    blocks : list of arrays
        The keys of each block.
    """

    def __init__(self, spec: Spec, keys: np.ndarray, size: int):
        self.spec, self.keys, self.size = spec, keys, size
        text = f"{spec.sha256} {size} ".encode() + as_digests(keys).tobytes()
        self.id = hashlib.sha256(text).hexdigest()[:32]
        self.blocks = [keys[start : start + size] for start in range(0, len(keys), size)]

    def save(self, disk: Disk, path: Path) -> None:
        """Write the plan, durably."""
        header = {"spec_sha256": self.spec.sha256, "size": self.size}
        write_record(disk, path, header, {"digests": as_digests(self.keys)})

    @classmethod
    def load(cls, path: Path, spec: Spec) -> BlockPlan | None:
        """Read a plan; None if there is none that is sound and for this spec."""
        try:
            record = Record(path)
            usable = record.header["spec_sha256"] == spec.sha256
            return cls(spec, as_keys(record.load("digests")), record.header["size"]) if usable else None
        except (BrokenRecordError, KeyError):
            return None


def block_size(images: int, accelerated: bool = False) -> int:
    """Return how many images make a block.

    Few images make small blocks, so that every worker has some and a kill costs little; many make
    blocks of up to 1024, so that there are not too many shards. An accelerator computes the rows of such a block
    in less time than the disk takes to confirm one, about a tenth of a second: it gets sixteen blocks of whole
    batches, of up to 4096.
    """
    if accelerated:
        return min(4096, max(128, -(-images // (16 * 128)) * 128))
    return min(1024, max(32, -(-images // (64 * 32)) * 32))
