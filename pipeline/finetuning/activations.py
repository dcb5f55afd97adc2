"""Batches of cached activations: from the device's memory, from this machine's, or read in blocks as they are needed.

What fits into memory is read once. Of what does not, an epoch takes short runs of neighbours from all over the file,
many at a time, and their rows in random order (a shuffle buffer), while the next ones are read by a thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..core.errors import CacheError
from ..core.machine import available_memory
from ..data import Dataset
from ..store import FeatureCache, Spec
from .batches import Batch
from .settings import FinetuneSettings

DEVICE_SHARE = 0.5  # of an accelerator's free memory, that activations may take
LEAST_BYTES = 2**26  # read at once, however little memory is allowed
RUNS = 256  # of neighbours in one reading, at least: files often lie sorted by class
VIEWS = 1  # beside an epoch's seed: what draws views, so that it is not what draws the order


@dataclass(frozen=True)
class Activations:
    """Where the activations are that training starts from.

    Attributes
    ----------
    path : Path
        Of the cache.
    spec : Spec
        What its rows were made with.
    layer : str
        Whose output they are: a cut, or ``pooled``.
    shape : tuple of int
        For one image.
    """

    path: Path
    spec: Spec
    layer: str
    shape: tuple[int, ...]


@dataclass
class _Held:
    """Rows in memory: which ones, ascending, and their activations (n, V, D)."""

    rows: np.ndarray
    values: torch.Tensor

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
        at = torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.values.device)
        return self.values[at, torch.from_numpy(views).to(self.values.device)]


class CachedActivations:
    """What a `Decoder` is for images: batches of a data set, here from a cache of activations.

    Parameters
    ----------
    cache : FeatureCache
        Of this very data set.
    dataset : Dataset
    settings : FinetuneSettings
        `image_memory` is the share of the memory available now that rows may take.
    device : torch.device
        Rows are kept there where they fit.

    Attributes
    ----------
    failures : dict of int to str
        Index and reason of every image that has no row.
    waited : float
        Seconds in which batches were not ready when they were asked for.
    mixing : int
        Rows among which an epoch's order is random, where they do not all fit into memory; else 0, for all. It decides
        what is learned, so whoever trains along, or goes on, takes the first one's.

    Raises
    ------
    CacheError
        If the cache is of other images.
    """

    def __init__(self, cache: FeatureCache, dataset: Dataset, settings: FinetuneSettings, device: torch.device):
        self.cache, self.waited = cache, 0.0
        skipped = dict(cache.skipped)
        present = np.array([path not in skipped for path in dataset.paths], bool)
        if cache.paths != [path for path, there in zip(dataset.paths, present, strict=True) if there]:
            raise CacheError(f"{cache.path} holds other images than {str(dataset.root)!r}. Run `extract` again.")
        self.failures = {int(index): skipped[dataset.paths[index]] for index in np.flatnonzero(~present)}
        self._row = np.cumsum(present) - 1
        self._present = present
        used = present & (dataset.labels >= 0)
        self._row_bytes = cache.views * cache.shape[-1] * cache.dtype.itemsize
        share = settings.image_memory / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._room, self._used = int(share * available_memory()), np.unique(self._row[used])
        self._device = device if self._fits(device) else torch.device("cpu")
        self._all: _Held | None = None
        self.mixing = self._at_once if self.streams else 0
        self._pool = ThreadPoolExecutor(1, "read")
        if self.streams and (damaged := cache.problems()):  # once, for runs are shorter than what a digest is of
            raise CacheError(f"{cache.path} is damaged: {damaged[0]}. Run `extract` again: it keeps every sound row.")

    @property
    def streams(self) -> bool:
        """Whether rows are read as they are needed, because they do not fit into memory."""
        return self._device.type == "cpu" and len(self._used) * self._row_bytes > self._room

    def _fits(self, device: torch.device) -> bool:
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return len(self._used) * self._row_bytes <= DEVICE_SHARE * free

    @property
    def _at_once(self) -> int:
        """Rows of one reading: two are in memory."""
        return max(1, max(self._room // 2, LEAST_BYTES) // self._row_bytes)

    def arranged(self, order: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """Return an epoch's order as it can be read, in runs; as it is, where all rows are in memory."""
        if not self.mixing:
            return order
        runs = self._row[order] // max(1, self.mixing // RUNS)
        places = np.random.default_rng((*seed, VIEWS)).permutation(runs.max() + 1)[runs]
        return order[np.argsort(places, kind="stable")][self._mixed(len(order), seed)]

    def _mixed(self, count: int, seed: tuple[int, ...]) -> np.ndarray:
        """Return places in random order within each reading."""
        rng, places = np.random.default_rng((*seed, VIEWS + 1)), np.arange(count)
        for start in range(0, count, self.mixing):
            rng.shuffle(places[start : start + self.mixing])
        return places

    def batches(
        self, groups: list[np.ndarray], augmentation: str = "none", seed: tuple[int, ...] = (), first: int = 0
    ) -> Iterator[Batch]:
        """Yield one batch for each group of places in an epoch; see `Decoder.batches`.

        With an augmentation, each image's view is drawn from those that are cached.
        """
        count = 1 + max((int(group[:, 0].max()) for group in groups if len(group)), default=0)
        drawn = np.zeros(count, np.int64)
        if augmentation != "none":
            drawn = np.random.default_rng((*seed, VIEWS)).integers(self.cache.views, size=count)
        for part in self._readings(groups[first:]):
            held = self._waited_for(part)
            for group in part.groups:
                there = group[self._present[group[:, 1]]]
                yield Batch(there[:, 1], held(self._row[there[:, 1]], drawn[there[:, 0]]))

    def _readings(self, groups: Sequence[np.ndarray]) -> Iterator[_Reading]:
        """Divide groups into what is read at once, and have the next part read while one is being used."""
        if not self.streams:
            yield _Reading(list(groups))
            return
        parts: list[_Reading] = []
        rows = self._at_once + 1
        for group in groups:
            if rows + len(group) > self._at_once:
                parts.append(_Reading())
                rows = 0
            parts[-1].groups.append(group)
            rows += len(group)
        for number, part in enumerate(parts):
            for ahead in parts[number : number + 2]:
                if ahead.found is None:
                    indices = np.concatenate([group[:, 1] for group in ahead.groups])
                    ahead.found = self._pool.submit(self._read, np.unique(self._row[indices[self._present[indices]]]))
            yield part
            part.found = None

    def _waited_for(self, part: _Reading) -> _Held:
        begin = time.perf_counter()
        if part.found is not None:
            held = part.found.result()
        else:
            held = self._all = self._all or self._read(self._used)
        self.waited += time.perf_counter() - begin
        return held

    def _read(self, rows: np.ndarray) -> _Held:
        values = torch.from_numpy(self.cache.read_rows(rows, stored=True))
        return _Held(rows, values.view(len(rows), self.cache.views, -1).to(self._device))

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Reading:
    """Groups whose rows are read at once."""

    groups: list[np.ndarray] = field(default_factory=list)
    found: Future[_Held] | None = None
