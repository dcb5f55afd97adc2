"""Folders that this program makes itself: archives fetched and unpacked within limits, all or nothing; made again."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .digests import digest_files, memo_file
from .listing import walk

_BLOCK = 2**20
_TIMEOUT = 60  # seconds without a byte
MANIFEST = ".manifest.json"  # hidden, so that no listing takes note of it


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


def ensure(
    folder: Path,
    build: Callable[[Path], None],
    *,
    recipe: str,
    cache_dir: Path,
    progress: Progress = silent,
) -> None:
    """Have `build` fill a folder, unless it already did and every file is still as it was.

    The folder appears under its name only when it is complete, and another process that makes it at the same time
    does no harm. A process killed in the middle leaves a hidden folder beside it, which may be deleted.

    Parameters
    ----------
    folder : Path
        Where the files shall be.
    build : callable
        Fills the empty folder that it is given.
    recipe : str
        What `build` makes; another recipe means another content.
    cache_dir : Path
        Keeps the memory of digests, so that looking is quick.
    progress : callable
        See `pipeline.core.progress`.

    Raises
    ------
    DataError
        The place cannot be written.
    """

    def is_good() -> bool:
        return is_whole(folder, recipe, cache_dir, progress)

    if is_good():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            build(fresh)
            manifest = {"recipe": recipe, "files": _contents(fresh, cache_dir, progress)}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=0))
            _publish(fresh, folder, Path(scratch) / "old", is_good)
    except OSError as error:
        raise DataError(f"Cannot make {folder}: {error.strerror or error}.") from error


def is_whole(folder: Path, recipe: str, cache_dir: Path, progress: Progress = silent) -> bool:
    """Return whether a folder made by `ensure` is complete, by this recipe, and has no file changed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest == {"recipe": recipe, "files": _contents(folder, cache_dir, progress)}
    except (OSError, ValueError):
        return False


def was_made(folder: Path) -> bool:
    """Return whether a folder was made by `ensure`, and not put there by hand."""
    return (folder / MANIFEST).exists()


def _contents(folder: Path, cache_dir: Path, progress: Progress) -> dict[str, str]:
    paths = [path for path, _ in walk(folder)]
    digests, failures = digest_files(folder, paths, memo=memo_file(cache_dir), progress=progress)
    return {path: failures.get(index) or digests[index].tobytes().hex() for index, path in enumerate(paths)}


def _publish(fresh: Path, folder: Path, old: Path, is_good: Callable[[], bool]) -> None:
    """Rename, unless another process was quicker; what else bears the name goes."""
    try:
        fresh.rename(folder)
    except OSError:
        if not is_good():
            folder.rename(old)
            fresh.rename(folder)
