"""Content digests: what an image is known by, wherever it lies and whatever it is called.

They are remembered, see `pipeline.data.memo`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .files import DEFAULT_LIMITS, Limits, UnreadableImageError, absolute, fingerprint, is_racy, open_regular
from .memo import Memo
from .sources import find

Entry = tuple[bytes, bytes, bytes]  # path, digest, seal

_TABLE = "CREATE TABLE IF NOT EXISTS digests_v1 (path BLOB PRIMARY KEY, digest BLOB, seal BLOB) WITHOUT ROWID"
_MOST_PARAMETERS = 900  # in one statement; older SQLite builds allow 999
DIGEST_BYTES = 16  # of the 32 of SHA-256
_BATCH = 4096  # files between two visits to the memo
_BLOCK = 2**20


class DigestCache(Memo):
    """Digests by path and fingerprint; a context manager.

    SQLite does not notice flipped bits, so each entry carries a seal over its path, fingerprint and digest; comparing
    it is also what compares the fingerprint.
    """

    tables = (_TABLE,)

    def look_up(self, fingerprints: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the digests of those files that are known by exactly this fingerprint.

        Parameters
        ----------
        fingerprints : mapping of str to bytes
            By absolute path.
        """
        files = {os.fsencode(file): file for file in fingerprints}
        found = {}
        rows: list[Entry] = []
        for name, digest, seal in self.guarded(lambda: self._select(list(files)), rows):
            file = files.get(name)
            if file and isinstance(digest, bytes) and seal == _seal(name, fingerprints[file], digest):
                found[file] = digest
        return found

    def add(self, entries: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Remember digests, each entry an absolute path, a fingerprint and a digest."""
        rows = [(name := os.fsencode(file), digest, _seal(name, mark, digest)) for file, mark, digest in entries]
        if rows:
            self.guarded(lambda: self._insert(rows), None)

    def _select(self, names: list[bytes]) -> list[Entry]:
        rows: list[Entry] = []
        if self.connection:
            for start in range(0, len(names), _MOST_PARAMETERS):
                some = names[start : start + _MOST_PARAMETERS]
                marks = ",".join("?" * len(some))
                query = f"SELECT path, digest, seal FROM digests_v1 WHERE path IN ({marks})"
                rows += self.connection.execute(query, some)
        return rows

    def _insert(self, rows: list[Entry]) -> None:
        if self.connection:
            with self.connection:
                change = "INSERT OR REPLACE INTO digests_v1 (path, digest, seal) VALUES (?, ?, ?)"
                self.connection.executemany(change, rows)


def _seal(name: bytes, fingerprint: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(name + b"\0" + fingerprint + digest, digest_size=8).digest()


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
        See `pipeline.core.progress`.

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
        DigestCache(memo) as known,
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
