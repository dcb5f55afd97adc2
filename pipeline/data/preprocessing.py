"""From the content of an image file to what a network or its device is given: decoding, transform and views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import nvjpeg
from .augmentation import PLAIN, Views
from .decoding import JpegDecoder, decode, decode_array
from .device_resize import Decoded, Encoded, resizing_of
from .files import DEFAULT_LIMITS, Limits
from .jpeg import read_header, turns
from .transforms import Transform

MOST_PIXELS = 2**19  # of an image that is handed on as decoded: a batch of larger ones would not fit into memory


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of an image file before a backbone sees it; small, and fit to be sent to another process.

    Attributes
    ----------
    transform : Transform
    views : Views
    fast_decode, decoder
        See `Backbone`.
    """

    transform: Transform
    views: Views = PLAIN
    fast_decode: bool = False
    decoder: str = "pillow"

    def decode(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
        """Return the image in a file's content, as large as the transform needs it; see `pipeline.data.decode`."""
        return decode(content, limits, *self._decoding)

    @property
    def _decoding(self) -> tuple[int | None, JpegDecoder | None]:
        """The pixels that are needed, where fewer may be decoded, and the decoder of JPEG files, where not Pillow's."""
        return (max(self.transform.resize) if self.fast_decode else None,
                nvjpeg.decode if self.decoder == "nvjpeg" else None)

    def pixels(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """Return the (V, H, W, 3) uint8 views of the image in a file's content, which is decoded once.

        Raises
        ------
        UnreadableImageError
            If there is no image in it.
        """
        return self.views(self.decode(content, limits), content, self.transform)

    def for_device(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray | Decoded | Encoded:
        """Return a file's content for a device that decodes, where that suits this file; else what `decoded` does.

        Where there are several views, these are returned, as by `pixels`.

        Raises
        ------
        UnreadableImageError
            See `decoded`.
        """
        if self.views.count > 1:
            return self.pixels(content, limits)
        header = read_header(content) if self.decoder == "nvjpeg" else None
        if header and nvjpeg.suits(content, header) and header.height * header.width <= limits.max_pixels:
            exchanged, _ = turns(header.orientation)
            size = (header.width, header.height) if exchanged else (header.height, header.width)
            if (resizing := resizing_of(self.transform, *size)) is not None:
                return Encoded(content, header.orientation, resizing, lambda: self.decoded(content, limits))
        return self.decoded(content, limits)

    def decoded(self, content: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray | Decoded:
        """Return the image in a file's content for a device that resizes: as it is, or its (1, H, W, 3) plain view
        where only Pillow resizes it, or where it is large.

        Raises
        ------
        UnreadableImageError
            If there is no image in it, or none that can be resized.
        """
        pixels = decode_array(content, limits, *self._decoding)
        height, width = pixels.shape[:2]
        resizing = resizing_of(self.transform, height, width, at_once=False)
        if resizing is None or height * width > MOST_PIXELS:
            return self.transform(Image.fromarray(pixels))[None]
        return Decoded(pixels, resizing)
