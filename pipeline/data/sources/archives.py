"""Zip and tar archives, read in place: an index of offsets, built once, and a seek for each image; WebDatasets.

The convention for labels beside images in a tar archive (``key.jpg`` with ``key.cls``, ``key.json`` or ``key.txt``)
is WebDataset's (https://github.com/webdataset/webdataset), but members may stand in any order: a key is a member's
path up to the first dot of its last part. Nothing but these three kinds is ever opened.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import tarfile
import zlib
from array import array
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import BinaryIO

import numpy as np

from ...core.errors import DataError
from ..files import Limits, UnreadableImageError
from .base import Labelled, Source, clean, is_plain, verdict
from .blobs import Blob, refusing, size_of

LABEL_SUFFIXES = (".cls", ".json", ".txt")  # the first that tells counts
LABEL_BYTES = 65536
_FIELDS = ("label", "cls", "class", "class_name", "label_name")
_LONGEST = 100  # characters; what is longer is a caption, no label
STORED, DEFLATED = 0, 8
_END, _END64, _LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")  # of the central directory, as zipfile's structCentralDir
_MOST_DIRECTORY = 2**31  # bytes of a central directory: some 20 million members


class Groups:
    """Gathers images and what may be labels, in any order, and then pairs them.

    Attributes
    ----------
    found : dict of str to str
        Label by image.
    unused : list of (str, str)
        Where no image has a label: the files that might have told, each with the reason why it is no image.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.unused: list[tuple[str, str]] = []
        self._images: list[str] = []
        self._labels: dict[str, str] = {}

    def image(self, name: str) -> None:
        """Take note of an image."""
        self._images.append(name)

    def label(self, name: str, content: bytes) -> None:
        """Take note of what may be a label."""
        self._labels[name] = sys.intern(_text(_suffix(name), content))

    def end(self, location: str) -> None:
        """Give images their labels.

        Raises
        ------
        DataError
            An image has two.
        """
        by_key, by_stem, doubtful = dict[str, str](), dict[str, str](), dict[str, list[str]]()
        for key, members in groupby(sorted(self._labels, key=_key), _key):
            names = list(members)
            if self._differing(names):
                doubtful[key] = names
            else:
                by_key[key] = self._told(names)
        stems = {_stem(image) for image in self._images if doubtful and _key(image) in doubtful}
        for key in {_key(stem) for stem in stems}:
            if not all(_stem(name) in stems for name in doubtful[key]):
                one, other = self._differing(doubtful[key])
                raise DataError(f"{location}: {one!r} and {other!r} tell different labels of one image, {key!r}: names "
                                "are compared up to their first dot.")
            # the key itself holds dots, as dates do
            for stem, own in groupby(sorted(doubtful[key], key=_stem), _stem):
                by_stem[stem] = self._told(list(own))
        for image in self._images:
            if label := by_stem.get(_stem(image)) or by_key.get(_key(image)):
                self.found[image] = label
        if not self.found:
            self.unused = [(name, verdict(name) or "") for name in self._labels]
        self._images, self._labels = [], {}

    def _differing(self, names: list[str]) -> list[str]:
        """Return two files of one kind that tell different labels, if there are such."""
        first: dict[str, str] = {}
        for name in names:
            one = first.setdefault(_suffix(name), name)
            if self._labels[one] != self._labels[name]:
                return [one, name]
        return []

    def _told(self, names: list[str]) -> str:
        """Return the label that files of one sample tell: the first kind that tells one."""
        kinds = {_suffix(name): name for name in names}
        told = (self._labels[kinds[suffix]] for suffix in LABEL_SUFFIXES if suffix in kinds)
        return next(filter(None, told), "")

    def labelled(self, names: Mapping[str, object]) -> Labelled:
        """Return the labels of all images of an archive."""
        classes = tuple(sorted(set(self.found.values())))
        index = {label: number for number, label in enumerate(classes)}
        labels = np.array([index.get(self.found.get(name, ""), -1) for name in names], np.int64)
        return Labelled(list(names), labels, classes)


def _key(name: str) -> str:
    """Return what files of one sample have in common: the path up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2].lower()}"


def _text(suffix: str, content: bytes) -> str:
    """Return the label that a file tells; empty if it tells none."""
    try:
        text = content.decode().strip()
        if suffix == ".json":
            told = json.loads(text)
            told = next((told[field] for field in _FIELDS if field in told), "") if isinstance(told, dict) else told
            text = str(told) if isinstance(told, (str, int)) else ""
    except (ValueError, RecursionError):
        return ""
    return text if len(text) <= _LONGEST and text.isprintable() else ""


class Archive(Source):
    """Members of an archive by name: where each begins, and how long it is.

    A member costs two entries of a dictionary and 32 bytes, no object of its own.

    Parameters
    ----------
    blob : Blob

    Raises
    ------
    DataError
        It cannot be read, or is no such archive.
    """

    kind = ""

    def __init__(self, blob: Blob):
        self.location = blob.location
        self._blob = blob
        self._places: dict[str, int] = {}
        columns = self._numbers = array("q")
        self._skipped: list[tuple[str, str]] = []
        with refusing(blob.location, f"a {self.kind} archive"), blob.open() as file:
            self._index(file)
        self._columns = np.frombuffer(columns, np.int64).reshape(-1, 4)

    def _index(self, file: BinaryIO) -> None:
        """Find the members, calling `_add` for each."""
        raise NotImplementedError

    def _add(self, name: str, reason: str, *columns: int) -> bool:
        """Take note of a member with what `read` needs of it; of several with one name the last counts."""
        if reason:
            self._skipped.append((name, reason))
            return False
        if name in self._places:
            self._skipped.append((name, "a later member has the same name"))
        self._places[name] = len(self._numbers) // 4
        self._numbers.extend(columns)
        return True

    def entries(self) -> Iterator[tuple[str, str]]:
        yield from ((name, "") for name in self._places)
        yield from self._skipped

    def fingerprint(self, name: str, anew: bool = False) -> bytes:
        return self._blob.fingerprint()

    def _place(self, name: str) -> list[int]:
        if name not in self._places:
            raise UnreadableImageError("there is no such member in the archive")
        return self._columns[self._places[name]].tolist()

    def _fetch(self, start: int, length: int) -> bytes:
        content = self._blob.fetch(start, length)
        if len(content) < length:
            raise UnreadableImageError("the archive ends within it")
        return content


class ZipSource(Archive):
    """A zip archive: members stored or deflated.

    The directory is read with `struct`: zipfile's objects would take 700 bytes a member.
    """

    kind = "zip"

    def _index(self, file: BinaryIO) -> None:
        directory, shift = _directory(file)
        place = 0
        while place + _ENTRY.size <= len(directory):
            fields = _ENTRY.unpack_from(directory, place)
            if fields[0] != b"PK\1\2":
                raise DataError(f"{self.location} has a damaged directory.")
            flags, method, crc, packed, size = fields[5], fields[6], fields[9], fields[10], fields[11]
            ends = np.cumsum([place + _ENTRY.size, *fields[12:15]]).tolist()  # of the name, further fields, a comment
            name = directory[ends[0] : ends[1]].decode("utf-8" if flags & 0x800 else "cp437", "surrogateescape")
            size, packed, start = _long(directory[ends[1] : ends[2]], size, packed, fields[18])
            place = ends[3]
            if "/" not in name:
                name = name.replace("\\", "/")  # as some archivers on Windows write it
            if not name.endswith("/"):
                self._take(clean(name), fields, method, (start + shift, packed, size, crc | method << 32))

    def _take(self, name: str, fields: tuple, method: int, columns: tuple[int, int, int, int]) -> None:
        reason = verdict(name)
        if reason is None:
            return
        unix = stat.S_IFMT(fields[17] >> 16) if fields[2] == 3 else 0
        if unix not in (0, stat.S_IFREG):
            reason = "a link or a device"
        elif fields[5] & 1:
            reason = "encrypted"
        elif method not in (STORED, DEFLATED):
            reason = f"compressed by method {method}, which is neither stored nor deflated"
        self._add(name, reason, *columns)

    def read(self, name: str, limits: Limits) -> bytes:
        start, packed, size, rest = self._place(name)
        if size > limits.max_bytes or packed > limits.max_bytes:
            raise UnreadableImageError(f"{max(size, packed):,} bytes, more than the limit of {limits.max_bytes:,}")
        header = self._fetch(start, 30)
        if header[:4] != b"PK\3\4":
            raise UnreadableImageError("its place in the archive holds something else")
        content = self._fetch(start + 30 + sum(struct.unpack_from("<2H", header, 26)), packed)
        if rest >> 32 == DEFLATED:
            content = _inflated(content, size)
        if len(content) != size or zlib.crc32(content) != rest & 0xFFFFFFFF:
            raise UnreadableImageError("damaged: its length or checksum is not what the archive says")
        return content


def _inflated(content: bytes, size: int) -> bytes:
    """Inflate a member to the size that was promised, and not a byte more than that."""
    try:
        return zlib.decompressobj(-15).decompress(content, size + 1)
    except zlib.error as error:
        raise UnreadableImageError(f"damaged: {error}") from error


def _directory(file: BinaryIO) -> tuple[bytes, int]:
    """Return a zip archive's central directory, and how far all its offsets are shifted by what stands before."""
    size = size_of(file)
    file.seek(max(0, size - 22 - 0xFFFF))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0:
        raise ValueError("it has no directory at its end; is it complete?")
    length, start = struct.unpack_from("<2L", tail, at + 12)
    end = size - len(tail) + at
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
        end = file.tell()
        record = file.read(56)
        if record[:4] != _END64:
            raise ValueError("its 64-bit directory is not where it should be")
        length, start = struct.unpack_from("<2Q", record, 40)
    shift = end - length - start
    if length > _MOST_DIRECTORY or shift < 0:
        raise ValueError("its directory lies outside of it")
    file.seek(start + shift)
    return file.read(length), shift


def _long(extra: bytes, size: int, packed: int, start: int) -> tuple[int, int, int]:
    """Return sizes and offset with those replaced that need 64 bits."""
    values = [size, packed, start]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            values = [next(numbers, value) if value == 0xFFFFFFFF else value for value in values]
        extra = extra[4 + length :]
    return values[0], values[1], values[2]


class TarSource(Archive):
    """An uncompressed tar archive, with class folders or in the WebDataset convention."""

    kind = "tar"

    def _index(self, file: BinaryIO) -> None:
        groups = Groups()
        # "r:" takes no compressed archive, which could only be read from its beginning
        with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep an object of a kilobyte for each
                self._member(archive, member, groups)
        groups.end(self.location)
        self._groups = groups

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, groups: Groups) -> None:
        name = clean(member.name)
        reason = verdict(name)
        if member.isdir() or reason is None:
            return
        if not member.isreg() or member.issparse():
            reason = "a link, a device or a sparse file"
        elif reason and is_plain(name):
            told = os.path.splitext(name)[1].lower() in LABEL_SUFFIXES and member.size <= LABEL_BYTES  # noqa: PTH122
            held = archive.extractfile(member) if told else None
            groups.label(name, held.read() if held else b"")
            return
        if self._add(name, reason, member.offset_data, member.size, member.size, 0):
            groups.image(sys.intern(name))

    def entries(self) -> Iterator[tuple[str, str]]:
        yield from super().entries()
        if not self._groups.found:
            yield from self._groups.unused

    def labelled(self) -> Labelled | None:
        return self._groups.labelled(self._places) if self._groups.found else None

    def read(self, name: str, limits: Limits) -> bytes:
        start, size, _, _ = self._place(name)
        if size > limits.max_bytes:
            raise UnreadableImageError(f"{size:,} bytes, more than the limit of {limits.max_bytes:,}")
        return self._fetch(start, size)
