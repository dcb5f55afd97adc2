"""Looking after caches: checking them against the images themselves, and finding those that may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .backbones import Embedder, from_description
from .data import place, read_bytes
from .data.digests import digest_files, memo_file
from .errors import CacheError, PipelineError, suggestion
from .progress import Progress, silent
from .runs import list_runs
from .store import FeatureCache, list_caches, verify_cache
from .store.catalog import CacheEntry, superseded, unused

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3, "int8": 5e-2}  # of ‖difference‖ / ‖row‖, by precision


@dataclass
class Verified:
    """What checking one cache gave.

    Attributes
    ----------
    path : Path
    problems : list of str
        Empty if all is well.
    recomputed : int
        Images that went through the backbone again.
    deviation : float or None
        The largest ‖recomputed − cached‖ / ‖cached‖ among them.
    unavailable : int
        Images that were chosen but are gone or have other content by now: no fault of the cache.
    """

    path: Path
    problems: list[str] = field(default_factory=list)
    recomputed: int = 0
    deviation: float | None = None
    unavailable: int = 0


def verify(
    paths: Sequence[Path] = (), *, cache_dir: Path = Path("cache"), recompute: int = 0, device: str = "auto",
    seed: int | None = None, progress: Progress = silent,
) -> list[Verified]:  # fmt: skip
    """Check caches to the last bit, and some of their rows against the images that they came from.

    Parameters
    ----------
    paths : sequence of Path
        Cache files; all below `cache_dir` by default.
    recompute : int
        How many random images of each to run through the backbone again.
    seed : int, optional
        Of the choice; by default another one each time, so that repeated checks see more of the cache.

    Raises
    ------
    CacheError
        If there is no cache to verify, or one that was named is not there.
    """
    for path in paths:
        _require_cache(path, cache_dir)
    # what was set aside is known to be damaged, and no run reads it
    chosen = list(paths) or [entry.path for entry in list_caches(cache_dir) if entry.path.suffix == ".h5"]
    if not chosen:
        raise CacheError(f"No caches in {str(cache_dir)!r}: run `pipeline extract` first.")
    reports = []
    for path in chosen:
        report = Verified(path, verify_cache(path, progress))
        if recompute and not report.problems:
            with FeatureCache.open(path) as cache:
                _recompute(cache, report, recompute, device, np.random.default_rng(seed), progress)
        reports.append(report)
    return reports


def _require_cache(path: Path, cache_dir: Path) -> None:
    """Refuse a name that is no file; one that is, damaged or not, is for whoever called to judge."""
    if not path.is_file():
        known = [str(entry.path) for entry in list_caches(cache_dir)]
        raise CacheError(f"There is no cache {str(path)!r}.{suggestion(str(path), known)}")


def _recompute(
    cache: FeatureCache, report: Verified, count: int, device: str, rng: np.random.Generator, progress: Progress
) -> None:
    rows = np.sort(rng.choice(len(cache), min(count, len(cache)), replace=False))
    root, paths = place(cache.meta["root"]), [cache.paths[row] for row in rows]
    digests, _ = digest_files(root, paths, memo=memo_file(cache.path.parent.parent), rehash=True)
    same = (digests == cache.digests[rows]).all(axis=1)
    report.unavailable = int((~same).sum())
    rows, paths = rows[same], [path for path, unchanged in zip(paths, same, strict=True) if unchanged]
    if not len(rows):
        return
    backbone = from_description(cache.meta["description"], cache.path.parent)
    embedder = Embedder.of(backbone, device=device, engine="torch")
    with progress(total=len(rows), desc="Recomputing", unit="image") as bar:
        found, failures = embedder.embed(
            range(len(rows)), lambda index: backbone.pixels(read_bytes(root / paths[index])), bar.update,
            backbone.views.count,
        )
    kept = [index for index in range(len(rows)) if index not in failures]
    report.problems += [f"row {rows[index]} ({paths[index]!r}): {reason}" for index, reason in failures.items()]
    cached = cache.read_rows(rows[kept]).astype(np.float64)
    deviations = np.linalg.norm(found - cached, axis=-1) / np.maximum(np.linalg.norm(cached, axis=-1), 1e-12)
    deviations = deviations.reshape(len(kept), -1).max(axis=1, initial=0)  # over the views of an image
    report.recomputed, report.deviation = len(kept), float(deviations.max(initial=0))
    bound = TOLERANCE[backbone.precision]
    report.problems += [
        f"row {rows[kept[index]]} ({paths[kept[index]]!r}) deviates by {deviations[index]:.2g}, more than {bound:g}"
        for index in np.flatnonzero(deviations > bound)
    ]


def removable(
    paths: Sequence[Path] = (), *, cache_dir: Path = Path("cache"), runs_dir: Path = Path("runs"),
    keep_newest: bool = False, superfluous: bool = False,
) -> list[CacheEntry]:  # fmt: skip
    """Return the caches that `cache rm` removes.

    Parameters
    ----------
    paths : sequence of Path
        These files.
    keep_newest : bool
        All that is not the newest complete cache of its data set and backbone.
    superfluous : bool
        All complete caches that no run in `runs_dir` was trained on.

    Raises
    ------
    CacheError
        If a file is no cache below `cache_dir`.
    PipelineError
        If nothing was asked for.
    """
    entries = list_caches(cache_dir)
    if not (paths or keep_newest or superfluous):
        raise PipelineError("Name the caches to remove, or give --keep-newest or --unused (--dry-run shows which).")
    found = {entry.path.resolve(): entry for entry in entries}
    for path in paths:
        _require_cache(path, cache_dir)
    if strangers := [str(path) for path in paths if path.resolve() not in found]:
        raise CacheError(f"Not a cache in {str(cache_dir)!r}: {', '.join(strangers)}. `pipeline cache ls` lists them.")
    chosen = [found[path.resolve()] for path in paths]
    if keep_newest:
        chosen += superseded(entries)
    if superfluous:
        used = [(run.metrics["dataset"], sha256) for run in list_runs(runs_dir) for sha256 in run.features]
        chosen += unused(entries, used)
    return list(dict.fromkeys(chosen))
