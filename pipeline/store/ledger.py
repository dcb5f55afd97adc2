"""What is known of each distinct image of a listing: its row and where it is, or why it has none."""

from __future__ import annotations

import numpy as np

from .keys import as_digests, as_keys, find, from_hex, to_hex
from .sources import RowKind, RowSource

UNKNOWN, FAILED = -1, -2


class Ledger:
    """The distinct images of a listing.

    Parameters
    ----------
    digests : (N, 16) uint8 array
        Content digest of each listed image.

    Attributes
    ----------
    keys : (U,) array
        Distinct digests, ascending.
    first : (U,) int64 array
        Where each is listed first.
    image : (N,) int64 array
        The distinct image behind each listed one.
    source, row : (U,) int arrays
        Number of the source that holds its row (or `UNKNOWN`, `FAILED`), and the row there.
    reasons : dict
        Position among `keys` to the reason why that image failed.
    kind : RowKind or None
        Of all rows; None as long as there are none.
    """

    def __init__(self, digests: np.ndarray):
        self.keys, self.first, self.image = np.unique(as_keys(digests), return_index=True, return_inverse=True)
        self.source = np.full(len(self.keys), UNKNOWN, np.int32)
        self.row = np.zeros(len(self.keys), np.int64)
        self.reasons: dict[int, str] = {}
        self.kind: RowKind | None = None
        self.sources: list[RowSource] = []
        self._passing: set[int] = set()

    def learn(self, source: RowSource, *, failures: bool = True) -> None:
        """Note what `source` holds of the images that are still unknown; it is kept open."""
        self.sources.append(source)
        if self.kind in (None, source.kind) and len(source.keys):
            self._learn_rows(source)
        if failures and source.failed:
            self._learn_failures(source)

    def _learn_rows(self, source: RowSource) -> None:
        at, there = find(self.keys, source.keys)
        rows = np.flatnonzero(there & (self.source[at] == UNKNOWN))
        rows = rows[source.sound(rows)][::-1]  # of duplicates within a source, the first is noted last and stays
        self.source[at[rows]], self.row[at[rows]] = len(self.sources) - 1, rows
        self.kind = source.kind if len(rows) else self.kind

    def _learn_failures(self, source: RowSource) -> None:
        at, there = find(self.keys, from_hex(source.failed))
        for image, listed, (digest, reason) in zip(at.tolist(), there.tolist(), source.failed.items(), strict=True):
            if listed and self.source[image] == UNKNOWN:
                self.source[image], self.reasons[image] = FAILED, reason
                self._passing |= {image} if digest in source.passing else set()

    def forget(self, images: np.ndarray) -> None:
        """Make these images unknown again."""
        self.source[images] = UNKNOWN
        for image in images.tolist():
            self.reasons.pop(image, None)

    @property
    def unknown(self) -> np.ndarray:
        """The unknown images' keys, in the order of their first listing."""
        images = np.flatnonzero(self.source == UNKNOWN)
        return self.keys[images[np.argsort(self.first[images], kind="stable")]]

    @property
    def state(self) -> np.ndarray:
        """(N,) int32 array: the source of each listed image's row, or `UNKNOWN`, or `FAILED`."""
        return self.source[self.image]

    def digests(self, listed: np.ndarray) -> np.ndarray:
        """Return the digests of these listing positions."""
        return as_digests(self.keys[self.image[listed]])

    def digests_of(self, images: np.ndarray) -> np.ndarray:
        """Return the digests of these distinct images."""
        return as_digests(self.keys[images])

    def read(self, images: np.ndarray) -> np.ndarray:
        """Return the rows of these distinct images, which must have some."""
        assert self.kind is not None
        out = np.empty((len(images), *self.kind.shape), self.kind.dtype)
        numbers, rows = self.source[images], self.row[images]
        for number in np.unique(numbers):
            mine = numbers == number
            out[mine] = self.sources[number].read(rows[mine])
        return out

    def remembered(self) -> dict[str, str]:
        """Return the failures that belong to the images' content: digest, as hexadecimal text, to reason."""
        images = [image for image in self.reasons if image not in self._passing]
        return dict(zip(to_hex(self.keys[images]), map(self.reasons.__getitem__, images), strict=True))

    def close(self) -> None:
        """Close every source."""
        for source in self.sources:
            source.close()
