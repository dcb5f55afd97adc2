"""What the tests of the cache share: listings, a deterministic 'network', one whole extraction, what a file holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from pipeline.store import CacheWriter, FeatureCache, Spec, cache_path
from pipeline.store.disk import DISK, Disk

SPEC = Spec({"architecture": "test", "weights": "0123", "layer": "pooled", "transform": {"resize": 8, "mean": [0.5]}})
DIMENSION = 4


def digest(content: str) -> np.ndarray:
    """Return the content digest, (16,) uint8, of an image that consists of this text."""
    return np.frombuffer(hashlib.sha256(content.encode()).digest()[:16], np.uint8)


@dataclass(frozen=True)
class Listing:
    """Images as the data room lists them; an image's content is a text, `broken…` ones cannot be decoded."""

    contents: list[str]
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    classes: tuple[str, ...] = ("ant", "bee")

    def __post_init__(self):
        for name, default in (
            ("paths", [f"images/{number:05d}.jpg" for number in range(len(self.contents))]),
            ("labels", [number % 2 for number in range(len(self.contents))]),
            ("splits", ["val" if number % 5 == 0 else "train" for number in range(len(self.contents))]),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, default)

    @property
    def digests(self) -> np.ndarray:
        return np.array([digest(content) for content in self.contents], np.uint8).reshape(-1, 16)

    def but(self, **changes) -> Listing:
        return replace(self, **changes)


def listing(count: int, first: int = 0) -> Listing:
    """Return a listing of `count` different images."""
    return Listing([f"image {number}" for number in range(first, first + count)])


def network(digests: np.ndarray) -> np.ndarray:
    """Return a row for each image, (n, DIMENSION) float32, that depends a little on its batch, as real networks' do."""
    own = digests[:, :DIMENSION].astype(np.float32)
    return own + np.float32(1e-3) * digests.astype(np.float32).sum() / np.float32(len(digests) or 1)


@dataclass
class Run:
    """What one extraction did."""

    computed: list[str] = field(default_factory=list)
    plan: object = None
    notes: list[str] = field(default_factory=list)


def extract(
    path: Path, images: Listing, *, spec: Spec = SPEC, disk: Disk = DISK, run: Run | None = None, **options
) -> Run:
    """Bring the cache `path` up to date with a listing, as stage one does; tell what was computed."""
    run = run or Run()
    finish = {name: options.pop(name) for name in ("meta", "skipped") if name in options}
    retry = options.pop("retry_failed", False)
    digests = images.digests
    with CacheWriter.open(path, spec, disk=disk, **options) as writer:
        run.plan, run.notes = writer.plan(digests, retry_failed=retry), writer.notes
        for number, positions in enumerate(run.plan.blocks):
            failures = {at: "not an image" for at in positions.tolist() if images.contents[at].startswith("broken")}
            rows = network(digests[[at for at in positions.tolist() if at not in failures]])
            writer.commit(number, rows, failures)
            run.computed += [images.contents[at] for at in positions.tolist()]
            if isinstance(disk, Witness):
                disk.committed(run.computed)
        writer.finish(
            paths=images.paths, labels=np.array(images.labels, np.int64), splits=np.array(images.splits, dtype="U5"),
            classes=images.classes, **finish,
        ).close()  # fmt: skip
    return run


class Witness(Disk):
    """A disk that is told which images are committed."""

    def committed(self, contents: list[str]) -> None:
        """Take note."""


def place(folder: Path, dataset: str = "photos", spec: Spec = SPEC) -> Path:
    """Return where the cache of a data set lies under `folder`."""
    return cache_path(folder, dataset, "test", spec)


def contents(path: Path) -> dict[str, bytes]:
    """Return every dataset of a cache file but `meta`, read with bare h5py, as type, shape and bytes."""
    with h5py.File(path) as file:
        return {
            name: (str(file[name].dtype), file[name].shape, file[name][()].tobytes()) for name in file if name != "meta"
        }


def meta(path: Path) -> dict:
    """Return the meta of a cache file, read with bare h5py."""
    with h5py.File(path) as file:
        return json.loads(file["meta"][()])


def everything(path: Path) -> list:
    """Read all that the public interface gives of a cache file."""
    with FeatureCache.open(path) as cache:
        return [
            cache.read_rows().tobytes(), cache.labels.tobytes(), cache.splits.tolist(), cache.paths,
            cache.digests.tobytes(), cache.skipped, cache.classes, cache.spec.sha256,
        ]  # fmt: skip


def differing(one: dict | list, other: dict | list) -> list:
    """Return the names, or positions, of what differs; pytest would compare the values by letter, for minutes."""
    one, other = (each if isinstance(each, dict) else dict(enumerate(each)) for each in (one, other))
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]
