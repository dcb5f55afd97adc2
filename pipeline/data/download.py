"""Fetching and unpacking archives: all or nothing, within limits, and checked."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..core.errors import DataError
from ..core.progress import Progress, silent

_BLOCK = 2**20
_TIMEOUT = 60  # seconds without a byte


def fetch(url: str, target: Path, *, max_bytes: int, sha256: str | None = None, progress: Progress = silent) -> str:
    """Download a file and return its SHA-256 in hex.

    Parameters
    ----------
    url : str
        Where it is.
    target : Path
        Where it goes; removed again when anything is wrong with it.
    max_bytes : int
        Refuse a larger one.
    sha256 : str, optional
        What its content must be, in hex.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        It cannot be had, came incomplete, or is not what was expected. Says nothing of what to do instead.
    """
    digest = hashlib.sha256()
    try:
        with (
            _opened(url) as (response, expected),
            target.open("wb") as file,
            progress(total=expected, desc=f"Downloading {target.name}", unit="B") as bar,
        ):
            received = _copy(response, file, max_bytes, digest, bar)
        if expected is not None and received != expected:
            raise DataError(f"{url} ended after {received:,} of {expected:,} bytes.")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DataError(f"{url} has the SHA-256 {digest.hexdigest()}, not the expected {sha256}.")
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, int | None]]:
    """Yield the response and its announced length; make one clear error of every way to fail."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length")
            yield response, int(length) if length and length.isdigit() else None
    except urllib.error.HTTPError as error:
        raise DataError(f"Cannot download {url}: the server answers {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise DataError(f"Cannot download {url}: {getattr(error, 'reason', None) or error}.") from error


def _copy(source: Any, target: IO[bytes], max_bytes: int, digest: Any, bar: Any) -> int:
    done = 0
    while block := source.read(_BLOCK):
        done += len(block)
        if done > max_bytes:
            raise DataError(f"More than {max_bytes:,} bytes came; that is not the expected archive.")
        digest.update(block)
        target.write(block)
        bar.update(len(block))
    return done


def unpack(
    archive: Path, folder: Path, *, top: str, max_bytes: int, max_files: int, progress: Progress = silent
) -> None:
    """Unpack what a zip archive holds below its folder `top` into `folder`.

    Raises
    ------
    DataError
        It is damaged, holds more than permitted, or an entry that would land elsewhere or is no plain file.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [entry for entry in source.infolist() if not entry.is_dir()]
            if len(entries) > max_files or sum(entry.file_size for entry in entries) > max_bytes:
                raise DataError(f"{archive.name} holds more than {max_files:,} files or {max_bytes:,} bytes.")
            with progress(total=len(entries), desc=f"Unpacking {archive.name}", unit="file") as bar:
                for entry in entries:
                    _unpack_one(source, entry, folder, top)
                    bar.update(1)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise DataError(f"{archive.name} is damaged or no zip archive ({error}).") from error


def _unpack_one(source: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, top: str) -> None:
    parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if ".." in parts or parts[0].endswith(("/", ":")) or kind not in (0, stat.S_IFREG):
        raise DataError(f"The archive holds {entry.filename!r}, which is no plain file inside it.")
    if parts[0] != top:
        return
    target = folder.joinpath(*parts[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile stops at the declared size, whose sum was checked, and compares the checksum at the end.
    with source.open(entry) as content, target.open("xb") as file:
        shutil.copyfileobj(content, file, _BLOCK)
