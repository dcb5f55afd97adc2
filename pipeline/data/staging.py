"""A batch laid out for the device: images as decoded side by side in one array, with the plan to resize them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .device_resize import Decoded, Encoded, Plan, Ready
from .transforms import Transform

ALIGNED = 64  # bytes at which arrays begin
SPARE = 4 * 2**20  # bytes for what comes after the pixels


class Room:
    """Memory in which the arrays of one batch are laid out, and then those of the next.

    Parameters
    ----------
    capacity : int
        Bytes that images as decoded may take of it.
    allocate : callable
        Returns a uint8 array of at least so many bytes.
    """

    def __init__(self, capacity: int, allocate: Callable[[int], np.ndarray]):
        self.capacity, self._allocate = capacity, allocate
        self._held, self._used = np.empty(0, np.uint8), 0

    def clear(self) -> None:
        """Begin anew: arrays that were given out are overwritten from now on."""
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return an array in this memory; where there is no room for it left, in new memory."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not self._used and size > len(self._held):
            self._held = self._allocate(size + SPARE)
        start = self._used
        if start + size > len(self._held):
            return np.empty(shape, dtype)
        self._used = -(-(start + size) // ALIGNED) * ALIGNED
        return self._held[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Group:
    """The images of a batch that the device makes views of in the same way.

    Parameters
    ----------
    places : list of int
        In the batch, rising.
    images : (n, H, W, 3) uint8 array, or list of Encoded
        In the array each image begins in the upper left corner, and the rest is not set.
    plan : Plan
        For these n.
    """

    places: list[int]
    images: np.ndarray | list[Encoded]
    plan: Plan

    def part(self, start: int, stop: int) -> Group:
        """Return those in the places from `start` to `stop`, which is where the batch begins then."""
        own = slice(bisect_left(self.places, start), bisect_left(self.places, stop))
        return Group([place - start for place in self.places[own]], self.images[own], self.plan.part(own))


@dataclass(frozen=True)
class Staged:
    """A batch on its way to the device; pickled, its arrays go out of band.

    Parameters
    ----------
    count : int
        Views in it.
    groups : list of Group
    places : list of int
        Of plain views that are ready, rising.
    views : (n, H, W, 3) uint8 array
        These views.
    """

    count: int
    groups: list[Group]
    places: list[int]
    views: np.ndarray

    @property
    def nbytes(self) -> int:
        """Of what the device is given."""
        groups = sum(group.images.nbytes if isinstance(group.images, np.ndarray) else
                     sum(file.nbytes for file in group.images) for group in self.groups)
        return groups + self.views.nbytes

    def parts(self, size: int) -> list[Staged]:
        """Return batches of at most so many views."""
        return [self] if self.count <= size else [
            self._part(start, min(start + size, self.count)) for start in range(0, self.count, size)]

    def _part(self, start: int, stop: int) -> Staged:
        own = slice(bisect_left(self.places, start), bisect_left(self.places, stop))
        groups = [part for group in self.groups if (part := group.part(start, stop)).places]
        return Staged(stop - start, groups, [place - start for place in self.places[own]], self.views[own])


def stage(found: Iterable[Ready], transform: Transform, room: Room) -> Staged:
    """Lay out a batch.

    Parameters
    ----------
    found : iterable of Encoded, Decoded, or (V, H, W, 3) uint8 arrays
    transform : Transform
        Of the network. Images as decoded that no longer fit, side by side, into the room's capacity are resized here.
    room : Room
        What is laid out there is valid until it is cleared.
    """
    decoded, files, views = dict[int, Decoded](), dict[int, Encoded](), dict[int, np.ndarray]()
    height = width = count = 0
    for one in found:
        if isinstance(one, Decoded):
            most = max(height, one.pixels.shape[0]), max(width, one.pixels.shape[1])
            if (len(decoded) + 1) * most[0] * most[1] * 3 <= room.capacity:
                decoded[count] = one
                height, width = most
            else:
                views[count] = transform(Image.fromarray(one.pixels))[None]
        elif isinstance(one, Encoded):
            files[count] = one
        else:
            views |= {count + number: view[None] for number, view in enumerate(one[1:], 1)}
            views[count] = one[:1]
            count += len(one) - 1
        count += 1
    groups = []
    if decoded:
        pixels = room.empty((len(decoded), height, width, 3), "uint8")
        for into, one in zip(pixels, decoded.values(), strict=True):
            into[: one.pixels.shape[0], : one.pixels.shape[1]] = one.pixels
        groups.append(Group(list(decoded), pixels, _plan(decoded.values(), transform, room)))
    if files:
        groups.append(Group(list(files), list(files.values()), _plan(files.values(), transform, room)))
    ready = room.empty((len(views), *transform.crop, 3), "uint8")
    for into, view in zip(ready, (views[place] for place in sorted(views)), strict=True):
        into[:] = view[0]
    return Staged(count, groups, sorted(views), ready)


def _plan(images: Iterable[Decoded | Encoded], transform: Transform, room: Room) -> Plan:
    return Plan.of([one.resizing for one in images], transform.crop, transform.interpolation, room.empty)
