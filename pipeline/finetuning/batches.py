"""Batches of augmented images, decoded ahead on threads; the same ones whatever the number of threads."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..core.machine import available_memory
from ..data import Dataset, Transform, UnreadableImageError, decode
from ..data.augmentation import AUGMENTATIONS, Augmentation
from ..engines.embedding import available_cores

BYTES_A_PIXEL = 4  # Pillow keeps RGB in four
AHEAD = 2  # batches decoded before they are asked for


@dataclass(frozen=True)
class Batch:
    """Some images of an epoch.

    Attributes
    ----------
    indices : (n,) int array
        In the data set; without those that could not be read.
    inputs : tensor
        (n, H, W, 3) uint8 pixels, or (n, D) cached activations.
    """

    indices: np.ndarray
    inputs: torch.Tensor


class Decoder:
    """Reads and decodes a data set's images, keeping decoded ones as far as memory is allowed.

    Parameters
    ----------
    dataset : Dataset
    transform : Transform
    workers : int
        Threads; 0 for one a core.
    memory : float
        Share of the available memory for decoded images, divided among the processes that train on this machine.

    Attributes
    ----------
    failures : dict of int to str
        Index and reason of every image that could not be read so far. They are left out, never replaced.
    waited : float
        Seconds that batches were not ready when they were asked for.
    mixing : int
        0: an epoch's order is random among all images, see `CachedActivations`.
    """

    mixing = 0

    def __init__(self, dataset: Dataset, transform: Transform, workers: int = 0, memory: float = 0):
        self.dataset = dataset
        self.transform = transform
        self.failures: dict[int, str] = {}
        self.waited = 0.0
        self._room = memory * available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._kept: dict[tuple[int, bool], Any] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers or available_cores(), "decode")

    def arranged(self, order: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        """Return an epoch's order as it can be read: any can."""
        return order

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(
        self, groups: list[np.ndarray], augmentation: str = "none", seed: tuple[int, ...] = (), first: int = 0
    ) -> Iterator[Batch]:
        """Yield one batch for each group of places in an epoch.

        Parameters
        ----------
        groups : list of (n, 2) int arrays
            For each image its place in the epoch and its index in the data set.
        augmentation : str
        seed : tuple of int
            What, with its place, decides an image's augmentation.
        first : int
            Groups to pass over.
        """
        augment = AUGMENTATIONS[augmentation](self.transform)
        plain = augmentation == "none"

        def view(place: int, index: int) -> Any:
            """Return an image's view; None for one that cannot be read."""
            if index in self.failures:
                return None
            try:
                return self._view(index, augment, plain, np.random.default_rng((*seed, place)))
            except UnreadableImageError as error:
                self.failures[index] = str(error)
                return None

        waiting: deque[tuple[np.ndarray, list[Future]]] = deque()
        remaining = iter(groups[first:])
        try:
            while True:
                for group in remaining:
                    jobs = [self._pool.submit(view, int(place), int(index)) for place, index in group]
                    waiting.append((group[:, 1], jobs))
                    if len(waiting) > AHEAD:
                        break
                if not waiting:
                    return
                begin = time.perf_counter()
                indices, jobs = waiting.popleft()
                views = [job.result() for job in jobs]
                readable = [place for place, view in enumerate(views) if view is not None]
                self.waited += time.perf_counter() - begin
                indices = indices[readable]
                yield Batch(indices, self._together(indices, [views[place] for place in readable], plain))
        finally:
            for _, jobs in waiting:
                for job in jobs:
                    job.cancel()

    def _view(self, index: int, augment: Augmentation, plain: bool, rng: np.random.Generator) -> Any:
        """Return an image's view, in a worker."""
        source = self._source(index, plain)
        return source if plain else augment(source, rng)

    def _together(self, indices: np.ndarray, views: list[Any], plain: bool) -> torch.Tensor:
        """Return (n, H, W, 3) uint8 of what `_view` returned."""
        pixels = np.empty((len(views), *self.transform.crop, 3), np.uint8)
        for into, view in zip(pixels, views, strict=True):
            into[:] = view
        return torch.from_numpy(pixels)

    def _source(self, index: int, plain: bool) -> Any:
        """Return the decoded image, or its plain view."""
        if (kept := self._kept.get((index, plain))) is not None:
            return kept
        source, size = self._decoded(index, plain)
        with self._lock:
            if size <= self._room and (index, plain) not in self._kept:
                self._room -= size
                self._kept[index, plain] = source
        return source

    def _decoded(self, index: int, plain: bool) -> tuple[Any, int]:
        """Return the decoded image, or its plain view, and the bytes that it takes."""
        image: Image.Image = decode(self.dataset.read(index), self.dataset.limits)
        if plain:
            view = self.transform(image)
            return view, view.nbytes
        return image, BYTES_A_PIXEL * image.width * image.height


def epoch_order(indices: np.ndarray, labels: np.ndarray, seed: tuple[int, ...], resample: bool) -> np.ndarray:
    """Return the order in which an epoch goes through the training images.

    Parameters
    ----------
    indices, labels : (N,) int arrays
        The training images and their classes.
    seed : tuple of int
    resample : bool
        Draw N images with replacement, each class equally often, instead of permuting them.
    """
    rng = np.random.default_rng(seed)
    if not resample:
        return rng.permutation(indices)
    counts = np.bincount(labels)
    share = 1 / counts[labels]
    return rng.choice(indices, len(indices), p=share / share.sum())


def grouped(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an epoch's order (N,) into batches: (n, 2) arrays of place and index."""
    placed = np.stack([np.arange(len(order)), order], axis=1)
    return [placed[start : start + size] for start in range(0, len(order), size)]
