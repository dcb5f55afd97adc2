"""Content digests: what an image is known by, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..progress import Progress, silent
from .fingerprints import fingerprint, is_racy
from .memo import Memo
from .places import absolute
from .reader import DEFAULT_LIMITS, Limits, UnreadableImageError, open_regular
from .sources import find

DIGEST_BYTES = 16  # of the 32 of SHA-256
_BATCH = 4096  # files between two visits to the memo
_BLOCK = 2**20


def digest_files(
    root: str | Path,
    paths: Sequence[str],
    *,
    memo: Path,
    rehash: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress = silent,
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the digest of every file's content: the first 16 bytes of its SHA-256.

    Parameters
    ----------
    root : path-like or URL
        Where `paths` start.
    paths : sequence of str
        N files, or places inside of archives and tables.
    memo : Path
        A file that remembers digests by path, size, times and inode, so that an unchanged file is not read again.
    rehash : bool
        Read every file all the same.
    limits : Limits
        Larger files are refused.
    progress : callable
        See `pipeline.progress`.

    Returns
    -------
    digests : np.ndarray
        Shape (N, 16), uint8; zeros where there is a failure.
    failures : dict of int to str
        Index of a file that could not be hashed, and the reason.
    """
    digests = np.zeros((len(paths), DIGEST_BYTES), np.uint8)
    failures: dict[int, str] = {}
    folder = absolute(root)
    with (
        Memo(memo) as known,
        ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool,
        progress(total=len(paths), desc="Hashing", unit="file") as bar,
    ):
        for start in range(0, len(paths), _BATCH):
            files = [os.path.join(folder, path) for path in paths[start : start + _BATCH]]  # noqa: PTH118
            found = {} if rehash else known.look_up(_fingerprints(files))
            missing = [file for file in files if file not in found]
            fresh = dict(zip(missing, pool.map(lambda file: _attempt(file, limits), missing), strict=True))
            known.add(_settled(fresh))
            _collect(files, found, fresh, start, digests, failures)
            bar.update(len(files))
    return digests, failures


def memo_file(cache_dir: Path) -> Path:
    """Return where the digests of known files are remembered."""
    return cache_dir / "digests.sqlite"


def fraction(digests: np.ndarray) -> np.ndarray:
    """Return for each digest, shape (N, 16), a number between 0 and 1 that is as good as drawn at random."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0] / 2.0**64


def hash_file(path: str, limits: Limits = DEFAULT_LIMITS) -> tuple[bytes, bytes]:
    """Return a file's digest, and its fingerprint if that was the same before and after reading, else nothing.

    Raises
    ------
    UnreadableImageError
        See `reader.open_regular`.
    """
    if held := find(path):
        source, name = held
        before, image = source.fingerprint(name), source.read(name, limits)
        settled = before == source.fingerprint(name, anew=True)
        return hashlib.sha256(image).digest()[:DIGEST_BYTES], before if settled else b""
    content = hashlib.sha256()
    with open_regular(path, limits) as descriptor:
        before, done = fingerprint(os.fstat(descriptor)), 0
        while block := os.read(descriptor, _BLOCK):
            content.update(block)
            done += len(block)
            if done > limits.max_bytes:
                raise UnreadableImageError(f"grew past the limit of {limits.max_bytes:,} bytes while being read")
        after = os.fstat(descriptor)
    settled = before == fingerprint(after) and not is_racy(after)
    return content.digest()[:DIGEST_BYTES], before if settled else b""


def _fingerprints(files: Iterable[str]) -> dict[str, bytes]:
    found = {}
    for file in files:
        try:
            held = find(file)
            found[file] = held[0].fingerprint(held[1]) if held else fingerprint(os.stat(file))  # noqa: PTH116
        except (OSError, ValueError, DataError):
            continue  # opening it will say why
    return found


def _attempt(file: str, limits: Limits) -> tuple[bytes, bytes] | str:
    try:
        return hash_file(file, limits)
    except DataError as error:  # of an image, or of what holds it
        return str(error)


def _settled(fresh: Mapping[str, tuple[bytes, bytes] | str]) -> list[tuple[str, bytes, bytes]]:
    return [(file, result[1], result[0]) for file, result in fresh.items() if not isinstance(result, str) and result[1]]


def _collect(
    files: Sequence[str],
    found: Mapping[str, bytes],
    fresh: Mapping[str, tuple[bytes, bytes] | str],
    start: int,
    digests: np.ndarray,
    failures: dict[int, str],
) -> None:
    for index, file in enumerate(files, start):
        result = (found[file], b"") if file in found else fresh[file]
        if isinstance(result, str):
            failures[index] = result
        else:
            digests[index] = np.frombuffer(result[0], np.uint8)
