"""Tables with image files in a column: Parquet, and Arrow as Hugging Face's `datasets` saves it.

The layout is theirs: a column of structs ``{bytes, path}`` (or of plain bytes), a column of labels, and in the schema's
metadata the names of the classes.
"""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...core.errors import DataError
from ..files import Limits, UnreadableImageError
from .base import Labelled, Source
from .blobs import Blob, LocalBlob, refusing, why

PYARROW = "Parquet and Arrow files need pyarrow: pip install 'image-feature-pipeline[parquet]'."
_IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes", "content")
_LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category", "y")
_MOST_CHUNK = 2**31  # bytes of images that are in memory at once for a thread


class _Chunk:
    """The image column of some rows; a class of its own so that it can be weakly referred to."""

    def __init__(self, values: Any):
        self.values = values


class Table(Source):
    """Rows ``0``, ``1``, … of a table; a thread holds the rows around the one that it read last.

    Parameters
    ----------
    blob : Blob

    Raises
    ------
    DataError
        It cannot be read, or has no column of images.
    """

    kind = ""

    def __init__(self, blob: Blob):
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise DataError(PYARROW) from error
        self.location = blob.location
        self._blob = blob
        with refusing(blob.location, self.kind):
            counts, labels = self._open()
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._labels = labels
        self._loaded: WeakValueDictionary[int, _Chunk] = WeakValueDictionary()
        self._locks = [threading.Lock() for _ in range(64)]
        self._own = threading.local()

    @abstractmethod
    def _open(self) -> tuple[list[int], tuple[np.ndarray, tuple[str, ...]] | None]:
        """Return the rows of each chunk, and labels with their classes."""

    @abstractmethod
    def _load(self, number: int) -> Any:
        """Return the image column of one chunk, as an Arrow array."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def entries(self) -> Iterator[tuple[str, str]]:
        yield from ((str(row), "") for row in range(len(self)))

    def labelled(self) -> Labelled:
        names = [str(row) for row in range(len(self))]
        labels, classes = self._labels or (np.full(len(names), -1, np.int64), ())
        return Labelled(names, labels, classes)

    def fingerprint(self, name: str, anew: bool = False) -> bytes:
        return self._blob.fingerprint()

    def read(self, name: str, limits: Limits) -> bytes:
        if not (name.isascii() and name.isdigit() and int(name) < len(self)):
            raise UnreadableImageError("there is no such row in the table")
        row = int(name)
        number = int(np.searchsorted(self._ends, row, side="right"))
        values = self._chunk(number).values
        cell = values[row - int(self._ends[number]) + len(values)]
        if hasattr(cell, "keys"):
            if not cell.is_valid or not cell["bytes"].is_valid:
                raise UnreadableImageError("the row holds no bytes of an image, at most the name of a file elsewhere")
            cell = cell["bytes"]
        if not cell.is_valid:
            raise UnreadableImageError("the row holds no image")
        content = cell.as_buffer()
        if content.size > limits.max_bytes:
            raise UnreadableImageError(f"{content.size:,} bytes, more than the limit of {limits.max_bytes:,}")
        return content.to_pybytes()

    def _chunk(self, number: int) -> _Chunk:
        mine = getattr(self._own, "chunk", None)
        if mine is not None and mine[0] == number:
            return mine[1]
        self._own.chunk = mine = None  # let go of one before the next is read
        with self._locks[number % len(self._locks)]:
            chunk = self._loaded.get(number)
            if chunk is None:
                try:
                    chunk = _Chunk(self._load(number))
                except UnreadableImageError:
                    raise
                except Exception as error:
                    raise UnreadableImageError(f"the table cannot be read here: {why(error)}") from error
                self._loaded[number] = chunk
        self._own.chunk = (number, chunk)
        return chunk


class ParquetSource(Table):
    """A Parquet file; what is read at once is a row group's column of images."""

    kind = "Parquet"

    def _open(self) -> tuple[list[int], tuple[np.ndarray, tuple[str, ...]] | None]:
        from pyarrow import parquet

        with self._blob.open() as stream:
            file = parquet.ParquetFile(stream)
            schema, self._metadata = file.schema_arrow, file.metadata
            image, label = _columns(schema, self.location)
            self._column = f"{image}.bytes" if _is_struct(schema.field(image).type) else image
            labels = _labels(file.read([label]).column(0), schema, label) if label else None
        groups = range(self._metadata.num_row_groups)
        return [self._metadata.row_group(group).num_rows for group in groups], labels

    def _load(self, number: int) -> Any:
        from pyarrow import parquet

        group = self._metadata.row_group(number)
        size = sum(group.column(at).total_uncompressed_size for at in range(group.num_columns)
                   if group.column(at).path_in_schema == self._column)  # fmt: skip
        if size > _MOST_CHUNK:
            raise UnreadableImageError(f"a row group of {size:,} bytes, more than the limit of {_MOST_CHUNK:,}; write "
                                       "the file with smaller ones (row_group_size=1000)")  # fmt: skip
        with self._blob.open() as stream:
            file = parquet.ParquetFile(stream, metadata=self._metadata)
            return file.read_row_group(number, columns=[self._column], use_threads=False).column(0).combine_chunks()


class ArrowSource(Table):
    """An Arrow stream on this machine's disk; what is read at once is a record batch."""

    kind = "an Arrow stream"

    def _open(self) -> tuple[list[int], tuple[np.ndarray, tuple[str, ...]] | None]:
        import pyarrow as pa

        if not isinstance(self._blob, LocalBlob):
            raise DataError(f"{self.location}: a saved data set is read from disk only. Copy it there.")
        counts, columns, self._starts = [], [], []
        with pa.memory_map(self.location) as file, pa.ipc.open_stream(file) as stream:
            self._schema = stream.schema
            self._image, label = _columns(self._schema, self.location)
            if pa.types.is_dictionary(self._schema.field(self._image).type):
                raise DataError(f"{self.location}: images in a dictionary are not read.")
            while True:
                start = file.tell()
                try:
                    batch = stream.read_next_batch()
                except StopIteration:
                    break
                self._starts.append(start)
                counts.append(batch.num_rows)
                if label:  # a copy, so that nothing refers to the mapped file once it is closed
                    columns.append(pa.concat_arrays([batch.column(label), batch.column(label)[:0]]))
            labels = _labels(pa.chunked_array(columns, self._schema.field(label).type), self._schema, label) \
                if label else None  # fmt: skip
        return counts, labels

    def _load(self, number: int) -> Any:
        import pyarrow as pa

        with pa.OSFile(self.location) as file:
            file.seek(self._starts[number])
            return pa.ipc.read_record_batch(pa.ipc.read_message(file), self._schema).column(self._image)


def holds_images(file: Path) -> bool:
    """Return whether a Parquet file holds images, rather than the paths of some.

    Raises
    ------
    DataError
        pyarrow is missing. A file that cannot be read counts as one that holds images, whose reader says why.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(PYARROW) from error
    try:
        return bool(_image_columns(parquet.read_schema(file)))
    except (OSError, ArrowException):
        return True


def one_label(kind: Any) -> bool:
    """Return whether an Arrow type can be one label: text, a whole number, or a truth value."""
    import pyarrow as pa

    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) \
        or pa.types.is_dictionary(kind) or pa.types.is_boolean(kind)  # fmt: skip


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(kind.field(at).name == "bytes" for at in range(kind.num_fields))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what `datasets` says of the columns, as far as it is well-formed."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in told.items() if isinstance(kind, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _image_columns(schema: Any) -> list[str]:
    """Return the columns that hold image files, the likeliest first."""
    import pyarrow as pa

    told = _features(schema)

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    images = [field.name for field in schema if _is_struct(field.type)]
    images += [field.name for field in schema if is_binary(field.type) and field.name.lower() in _IMAGES]
    return sorted(images, key=lambda name: (told.get(name, {}).get("_type") != "Image", name.lower() not in _IMAGES))


def _columns(schema: Any, location: str) -> tuple[str, str | None]:
    """Return which column holds images, and which labels, if one does."""
    told = _features(schema)
    images = _image_columns(schema)
    if not images:
        raise DataError(f"{location} has no column of images: expected a struct with 'bytes', or bytes under one of "
                        f"{', '.join(_IMAGES)}; it has {', '.join(map(repr, schema.names[:8]))}.")  # fmt: skip
    labels = [name for name, kind in told.items() if kind.get("_type") == "ClassLabel" and name in schema.names]
    labels += [field.name for field in schema if field.name.lower() in _LABELS]
    fit = [name for name in labels if one_label(schema.field(name).type)]
    if labels and not fit:
        raise DataError(f"{location}: the column {labels[0]!r} holds {schema.field(labels[0]).type}, and a label is "
                        "one text, whole number or truth value a row.")  # fmt: skip
    fit.sort(key=lambda name: _LABELS.index(name.lower()) if name.lower() in _LABELS else len(_LABELS))
    return images[0], fit[0] if fit else None


def _labels(column: Any, schema: Any, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels, shape (N,), -1 where there is none, and their classes."""
    import pyarrow as pa

    names = _features(schema).get(name, {}).get("names")
    if pa.types.is_integer(column.type) and isinstance(names, list) and len(set(map(str, names))) == len(names):
        codes = column.fill_null(-1).to_numpy().astype(np.int64)
        return np.where((codes >= 0) & (codes < len(names)), codes, -1), tuple(map(str, names))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), tuple(coded.dictionary.to_pylist())
