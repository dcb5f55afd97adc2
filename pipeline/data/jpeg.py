"""Decoding ordinary JPEG files in one call that holds no lock, to the very pixels that Pillow gives.

Pillow parses a file's markers in Python and takes the interpreter's lock between pieces, so that threads wait for each
other: on 16 cores 16 of them decode half of what 16 processes do. libjpeg-turbo by itself, through simplejpeg, needs
neither. What is not an ordinary JPEG file, or what it refuses (it takes a warning for an error), is left to Pillow, so
that every rule and every reason is Pillow's.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass

import numpy as np

try:
    import simplejpeg
except ImportError:  # a machine without it decodes with Pillow alone
    simplejpeg = None

ORIENTATION = 0x0112
_ORDINARY = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive DCT with Huffman codes
_XMP = b"http://ns.adobe.com/xap/"
_own = threading.local()


@dataclass(frozen=True)
class JpegHeader:
    """What the markers of an ordinary JPEG file say.

    Attributes
    ----------
    height, width : int
        As stored, before the image is turned.
    orientation : int
        Of EXIF, 1 to 8; 1 where it says nothing.
    grey : bool
        Of one component; otherwise of YCbCr.
    progressive : bool
    """

    height: int
    width: int
    orientation: int
    grey: bool
    progressive: bool


def read_header(content: bytes) -> JpegHeader | None:
    """Return a JPEG file's header; None where Pillow had better look.

    That is where markers are out of order, components are not those of grey or YCbCr by everybody's reading, or the
    orientation is said twice or elsewhere than in EXIF.
    """
    place, orientation, frame, transform = 2, None, None, 1
    try:
        while True:
            if content[place] != 0xFF:
                return None
            marker = content[place + 1]
            if marker == 0xDA:
                break
            (length,) = struct.unpack_from(">H", content, place + 2)
            start, place = place + 4, place + 2 + length
            if length < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or place >= len(content):
                return None
            segment = content[start:place] if marker in (0xE1, 0xEE) else b""
            if marker in _ORDINARY:
                if frame is not None:
                    return None
                frame = marker, *struct.unpack_from(">BHHB", content, start), content[start + 6 : place : 3]
            elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return None
            elif segment.startswith(b"Exif\0\0"):
                if orientation is not None or (orientation := _orientation(segment[6:])) is None:
                    return None
            elif segment.startswith(_XMP) and b"Orientation" in segment:
                return None
            elif segment.startswith(b"Adobe"):
                transform = segment[11]
    except (IndexError, struct.error):
        return None
    if frame is None:
        return None
    marker, bits, height, width, count, components = frame
    grey, ycbcr = count == 1, count == 3 and components == b"\1\2\3" and transform == 1
    if bits != 8 or not height or not width or not (grey or ycbcr):
        return None
    return JpegHeader(height, width, orientation or 1, grey, marker == 0xC2)


def _orientation(exif: bytes) -> int | None:
    """Return the orientation in an EXIF block's first directory, 1 where there is none; None for a damaged block."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    (place,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, place)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ORIENTATION:
            (value,) = struct.unpack_from(order + "H", exif, entry + 8)
            return value if kind == 3 and values == 1 and 1 <= value <= 8 else None
    return 1


def decode_ordinary(content: bytes, most_pixels: int, needed: int | None = None) -> tuple[np.ndarray, int] | None:
    """Return the (H, W, 3) pixels of an ordinary JPEG file, not turned yet, and its orientation.

    Parameters
    ----------
    content : bytes
        A whole file.
    most_pixels : int
        A larger image is left to Pillow, which refuses it.
    needed : int, optional
        An image that `SCALED_RULE` decodes at a smaller size for this is left to Pillow.

    Returns
    -------
    (uint8 array, int), or None where Pillow is to decode
        The array is this thread's, and changes with the next call.
    """
    if simplejpeg is None or (header := read_header(content)) is None:
        return None
    height, width = header.height, header.width
    if height * width > most_pixels or (needed and min(height, width) >= 4 * needed):
        return None
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", buffer=_buffer(height * width * 3))
    except ValueError:
        return None
    return (pixels, header.orientation) if pixels.shape == (height, width, 3) else None


def _buffer(size: int) -> np.ndarray:
    """Return this thread's bytes, at least so many: new memory for every image would cost more than its decoding."""
    if len(getattr(_own, "buffer", b"")) < size:
        _own.buffer = np.empty(size, np.uint8)
    return _own.buffer[:size]


def turns(orientation: int) -> tuple[bool, tuple[int, ...]]:
    """Return what makes an image upright: whether its first two axes are exchanged, and which are reversed then."""
    both = (0, (3, 4, 7, 8)), (1, (2, 3, 6, 7))
    return orientation >= 5, tuple(axis for axis, which in both if orientation in which)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return (H, W, 3) pixels upright, as a view: what Pillow's transposes of the same orientation give."""
    exchanged, reversed_ = turns(orientation)
    return np.flip(pixels.swapaxes(0, 1) if exchanged else pixels, reversed_)
