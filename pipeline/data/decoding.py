"""The one guarded way from an image file to pixels, for every path through the pipeline.

Whatever a file holds, the outcome is an RGB image by the rules of `DECODE_RULES`, or an
`UnreadableImageError` with a short reason: never a crash, a hang, or silently wrong pixels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..core.contents import stand_in
from ..core.errors import DataError, PipelineError, one_line
from .files import DEFAULT_LIMITS, Limits, MissingDecoderError, UnreadableImageError, open_regular
from .jpeg import decode_ordinary, turned
from .listing import HEIF_MISSING

try:
    from pillow_heif import HeifImageFile
except ImportError:  # an extra; without it such files are skipped with the reason
    HeifImageFile = None  # type: ignore[assignment, misc]

# Everything here that decides pixel values; it is part of a cache's spec, so a changed rule needs a new version.
# AVIF, JPEG 2000 and HEIF follow the same rules. They are not listed, for their rows cannot be any older file's: what
# was cached before they could be read stays valid.
DECODE_RULES: dict[str, object] = {
    "version": 1,
    "formats": ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"],
    "orientation": "EXIF applied",
    "alpha": "composited on white",
    "sixteen_bit": "high byte",
    "float": "refused",
    "animation": "first frame",
    "cmyk": "Pillow's conversion",
    "colour_profile": "ignored",
}

# What `decode` does beyond these rules if it is told how large an image need be.
SCALED_RULE = "JPEG decoded at 1/2, 1/4 or 1/8 by its DCT where both sides stay twice as long as needed"

# The readers themselves, not `Image.open`: that warns about a large image before our cap can refuse it, and hands
# JPEG files that claim further pictures (MPO) to another reader.
_READERS: tuple[tuple[Callable[[bytes], bool], type[ImageFile.ImageFile]], ...] = (
    (lambda start: start.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    (lambda start: start.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    (lambda start: start.startswith(b"RIFF") and start[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    (lambda start: start.startswith((b"GIF87a", b"GIF89a")), GifImagePlugin.GifImageFile),
    (lambda start: start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), TiffImagePlugin.TiffImageFile),
    (lambda start: start.startswith(b"BM"), BmpImagePlugin.BmpImageFile),
    (lambda start: start.startswith(tuple(b"P%d" % kind for kind in range(1, 7))), PpmImagePlugin.PpmImageFile),
    (lambda start: start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
     Jpeg2KImagePlugin.Jpeg2KImageFile),
    (lambda start: bool(_brands(start) & {b"avif", b"avis"}), AvifImagePlugin.AvifImageFile),
)  # fmt: skip
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_START = 64  # bytes that tell a format

JpegDecoder = Callable[[bytes, JpegImagePlugin.JpegImageFile], Image.Image | None]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Remarks on damaged metadata concern nobody here. A filter for good, because `catch_warnings` is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_bytes(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Return the content of one image file.

    Parameters
    ----------
    path : str or Path
        The file, links being followed; or a place inside of an archive or table, or a URL (see `sources`).
    limits : Limits
        Only ``max_bytes`` matters here.

    Raises
    ------
    UnreadableImageError
        The file cannot be read, is no regular file, or is too large.
    """
    from .sources import find

    try:
        held = find(path)
    except UnreadableImageError:
        raise
    except DataError as error:
        raise UnreadableImageError(str(error)) from error
    if held:
        return held[0].read(held[1], limits)
    with open_regular(path, limits) as descriptor:
        content = _read_whole(descriptor, limits.max_bytes)
    if len(content) > limits.max_bytes:
        raise UnreadableImageError(f"grew past the limit of {limits.max_bytes:,} bytes while being read")
    return content


def _read_whole(descriptor: int, most: int) -> bytes:
    """Return what a file holds, of a large one `most` bytes and one more.

    By the system's own calls, as few as can be: at each Python hands its lock to another thread and waits for it
    again, and a file object makes twice as many.
    """
    # not the limit at once: a buffer of that size would be allocated for every image
    size = min(os.fstat(descriptor).st_size, most)
    content = os.read(descriptor, size + 1)
    while len(content) != size and len(content) <= most:  # cut short by the system, or growing
        if not (more := os.read(descriptor, min(most + 1 - len(content), 2**20))):
            break
        content += more
    return content


def decode(
    content: bytes, limits: Limits = DEFAULT_LIMITS, needed: int | None = None, jpeg: JpegDecoder | None = None
) -> Image.Image:
    """Return the image that `content` holds, upright and in RGB, by `DECODE_RULES`.

    Parameters
    ----------
    content : bytes
        A whole image file.
    limits : Limits
        Only ``max_pixels`` matters here.
    needed : int, optional
        Pixels to which both sides may shrink later: `SCALED_RULE` applies. Photographs of 12 megapixels take a
        quarter of the time then; their features move by 2 to 4 % (cosine 0.9994 and more, measured on Lite0).
    jpeg : callable, optional
        Another decoder of JPEG files, see `nvjpeg.decode`; what it returns None for is decoded here.

    Returns
    -------
    PIL.Image.Image
        Mode RGB.

    Raises
    ------
    UnreadableImageError
        No image, of no permitted format, truncated, damaged, too large, or with pixels that no rule scales.
    """
    if jpeg is None and (ordinary := decode_ordinary(content, limits.max_pixels, needed)):
        return Image.fromarray(np.ascontiguousarray(turned(*ordinary)))
    return decode_by_pillow(content, limits, needed, jpeg)


def decode_array(
    content: bytes, limits: Limits = DEFAULT_LIMITS, needed: int | None = None, jpeg: JpegDecoder | None = None
) -> np.ndarray:
    """Return what `decode` does as a (H, W, 3) uint8 array; an ordinary JPEG file is never an image of Pillow's."""
    if jpeg is None and (ordinary := decode_ordinary(content, limits.max_pixels, needed)):
        return turned(*ordinary).copy()
    return np.asarray(decode_by_pillow(content, limits, needed, jpeg))


def decode_by_pillow(
    content: bytes, limits: Limits = DEFAULT_LIMITS, needed: int | None = None, jpeg: JpegDecoder | None = None
) -> Image.Image:
    """Do what `decode` does without libjpeg-turbo's own way for ordinary JPEG files."""
    try:
        return _to_rgb(_upright(_load(content, limits, needed, jpeg)))
    except (PipelineError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, IndexError…
        raise UnreadableImageError(f"truncated or damaged: {one_line(error)}") from error


def _brands(start: bytes) -> set[bytes]:
    """Return what an ISO media file says that it is, the family of AVIF and HEIF; nothing for any other file."""
    if start[4:8] != b"ftyp":
        return set()
    names = start[8 : min(int.from_bytes(start[:4]), len(start))]
    return {names[place : place + 4] for place in range(0, len(names) - 3, 4)} - {names[4:8]}


def _reader(start: bytes) -> type[ImageFile.ImageFile]:
    """Return what reads a file that begins so."""
    if reader := next((reader for accepts, reader in _READERS if accepts(start)), None):
        return reader
    if not _brands(start) & _HEIF:
        raise UnreadableImageError(stand_in(start) or "not an image of a known format (JPEG, PNG, WebP, BMP, GIF, "
                                   "TIFF, PPM, AVIF, JPEG 2000, HEIF)")
    if HeifImageFile is None:
        raise MissingDecoderError(HEIF_MISSING)
    return HeifImageFile


def _load(content: bytes, limits: Limits, needed: int | None, jpeg: JpegDecoder | None) -> Image.Image:
    if not content:
        raise UnreadableImageError("the file is empty")
    reader = _reader(content[:_START])
    if reader is PngImagePlugin.PngImageFile:
        reader(BytesIO(content)).verify()  # the only step that compares every checksum; it leaves the image unusable
    image = reader(BytesIO(content))
    width, height = image.size
    if width * height > limits.max_pixels:
        raise UnreadableImageError(
            f"{width} x {height} is {width * height:,} pixels, more than the limit of {limits.max_pixels:,}"
        )
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if jpeg and (decoded := jpeg(content, image)) is not None:
            return decoded
        _scale(image, needed)
    image.load()
    return image


def _scale(image: JpegImagePlugin.JpegImageFile, needed: int | None) -> None:
    """Have a JPEG file decoded by `SCALED_RULE`."""
    width, height = image.size
    if needed:
        factor = next((factor for factor in (8, 4, 2) if min(width, height) >= 2 * needed * factor), 1)
        if factor > 1:
            image.draft(image.mode, (width // factor, height // factor))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing, and the pixels are sound
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels, which no rule scales")
    if image.mode.startswith("I"):
        return _high_byte(image).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray, as Pillow does for 16-bit colour; its own `convert` would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise UnreadableImageError("32-bit pixels outside 0..65535, which no rule scales")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
