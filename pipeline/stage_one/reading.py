"""From an image's position in a data set to its pixels, with every check that a row needs."""

from __future__ import annotations

import hashlib

from ..core.errors import DataError
from ..data import Dataset, UnreadableImageError
from ..data.device_resize import Ready
from ..data.digests import DIGEST_BYTES
from ..data.files import MissingDecoderError
from ..data.preprocessing import Preprocessing


class Reading:
    """From an image's position in a data set to its pixels, see `Preprocessing.pixels`.

    Parameters
    ----------
    dataset : Dataset
    preprocessing : Preprocessing
    for_device : bool
        Whether to return images as a device takes them instead, see `Preprocessing.for_device`.

    Attributes
    ----------
    passing : set of int
        Images that could not be read just now; their content may be sound.
    """

    def __init__(self, dataset: Dataset, preprocessing: Preprocessing, for_device: bool = False):
        self._dataset, self._preprocessing, self.for_device = dataset, preprocessing, for_device
        self.passing = set[int]()

    def __call__(self, index: int) -> Ready:
        """Return an image.

        Raises
        ------
        UnreadableImageError
            If there is none.
        DataError
            If the file is no longer what was listed.
        """
        try:
            content = self._dataset.read(index)
        except UnreadableImageError:
            self.passing.add(index)
            raise
        # a row goes under the digest of the content that it was computed from, or nowhere
        if hashlib.sha256(content).digest()[:DIGEST_BYTES] != self._dataset.digests[index].tobytes():
            raise DataError(f"{self._dataset.paths[index]!r} changed while it was being extracted. Run the same "
                            "command again: what is done is kept.")
        way = self._preprocessing.for_device if self.for_device else self._preprocessing.pixels
        try:
            return way(content, self._dataset.limits)
        except MissingDecoderError:
            self.passing.add(index)
            raise
