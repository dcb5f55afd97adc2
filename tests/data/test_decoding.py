"""The guarded reader against a zoo of image files: each gives stated pixels, or a stated reason."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipeline.data.decoding import DECODE_RULES, decode, read_bytes
from pipeline.data.files import Limits, MissingDecoderError, UnreadableImageError

# pytest puts the process's own filters aside; that the reader's keeps standard error clean is tested in a subprocess
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 8), np.arange(0, 200, 10)), -1).astype(np.uint8)
PIXELS = np.concatenate([GRADIENT, np.full((20, 30, 1), 90, np.uint8)], -1)  # (20, 30, 3), no two alike


def encoded(image: Image.Image | np.ndarray, kind: str, **settings) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(image).save(stream, **settings)
    else:
        image.save(stream, kind, **settings)
    return stream.getvalue()


def pixels(content: bytes) -> np.ndarray:
    image = decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    "content",
    [
        encoded(PIXELS, "PNG"),
        encoded(PIXELS, "BMP"),
        encoded(PIXELS, "TIFF"),
        encoded(PIXELS, "TIFF", compression="tiff_lzw"),
        encoded(PIXELS, "PPM"),
        encoded(PIXELS, "WEBP", lossless=True),
        encoded(PIXELS, "GIF"),
        encoded(PIXELS, "JPEG2000"),
        encoded(PIXELS, "JPEG2000", no_jp2=True),
        encoded(PIXELS, "PNG", save_all=True, append_images=[Image.new("RGB", (30, 20))]),
        encoded(PIXELS, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), (9, 9, 9))]),
        encoded(PIXELS, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (30, 20))]),
        encoded(PIXELS, "TIFF", save_all=True, append_images=[Image.new("RGB", (5, 5))]),
    ],
    ids=lambda content: f"{content[:4]!r}-{len(content)}",
)
def test_lossless_formats_and_first_frames_give_the_very_pixels(content):
    expected = PIXELS
    if content.startswith(b"GIF"):  # 600 colours do not fit its palette
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.abs(expected.astype(int) - PIXELS).max() < 30
    assert np.array_equal(pixels(content), expected)


def test_a_jpeg_gives_pillows_pixels():
    content = encoded(PIXELS, "JPEG", quality=95)
    assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_jpeg_with_further_pictures_gives_the_first_and_no_warning():
    other = Image.new("RGB", (30, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(encoded(PIXELS, "MPO", quality=95, save_all=True, append_images=[other]))
    assert np.abs(found.astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_every_exif_orientation_is_applied(kind, orientation):
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: PIXELS.transpose(1, 0, 2)[:, ::-1],
        7: PIXELS.transpose(1, 0, 2)[::-1, ::-1],
        8: PIXELS.transpose(1, 0, 2)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    best = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True},
            "AVIF": {"quality": 100, "subsampling": "4:4:4"}, "HEIF": {"quality": 100, "chroma": "444"}}
    settings = best.get(kind, {})
    found = pixels(encoded(PIXELS, kind, exif=exif.tobytes() if kind != "TIFF" else exif, **settings))
    assert found.shape == turned.shape
    assert np.abs(found.astype(int) - turned).max() <= (3 if kind in ("JPEG", "AVIF", "HEIF") else 0)


def test_a_damaged_exif_block_spoils_neither_pixels_nor_standard_error():
    content = encoded(PIXELS, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 7)
    script = "import sys; from pipeline.data import decode; print(decode(sys.stdin.buffer.read()).size)"
    ran = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, check=True)
    assert ran.stdout.split() == [b"(30,", b"20)"]
    assert ran.stderr == b""


def test_sixteen_bit_gray_keeps_its_high_byte_and_is_not_clipped():
    gray = np.arange(0, 65536, 97, dtype=np.uint16)[:600].reshape(20, 30) * 1
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(pixels(encoded(Image.fromarray(gray), kind)), np.repeat((gray >> 8)[..., None], 3, -1))


def test_sixteen_bit_colour_keeps_its_high_byte_too():
    import zlib

    rows = b"".join(b"\0" + (row * 256 + 200).astype(">u2").tobytes() for row in PIXELS.astype(int))
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows), b"IEND")
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in chunks:
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert np.array_equal(pixels(content), PIXELS)


def test_transparency_is_laid_on_white_so_that_hidden_colours_stay_hidden():
    alpha = np.linspace(0, 255, 600).astype(np.uint8).reshape(20, 30, 1)
    rgba = np.concatenate([PIXELS, alpha], -1)
    exact = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    for kind, settings in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        found = pixels(encoded(rgba, kind, **settings)).astype(float)
        assert np.abs(found - exact).max() <= 1, kind
    gray = pixels(encoded(Image.fromarray(rgba).convert("LA"), "PNG"))
    assert (gray[0, 0] == 255).all()
    assert np.array_equal(gray[-1, -1], np.repeat(np.asarray(Image.fromarray(PIXELS).convert("L"))[-1, -1], 3))


def test_a_transparent_colour_or_palette_entry_becomes_white():
    palette = Image.fromarray(PIXELS).quantize(16)
    entry = int(np.asarray(palette)[3, 4])
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == entry] = 255
    assert np.array_equal(pixels(encoded(palette, "PNG", transparency=entry)), shown)
    assert np.array_equal(pixels(encoded(palette, "GIF", transparency=entry)), shown)
    keyed = PIXELS.copy()
    keyed[2, 3] = 255
    assert np.array_equal(pixels(encoded(PIXELS, "PNG", transparency=tuple(PIXELS[2, 3].tolist()))), keyed)


def test_palette_bilevel_and_gray_images_become_rgb():
    palette = Image.fromarray(PIXELS).quantize(64)
    gray = Image.fromarray(PIXELS).convert("L")
    bilevel = gray.point(lambda value: 255 if value > 99 else 0).convert("1")
    for image in (palette, gray, bilevel):
        assert np.array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk_is_converted_as_pillow_does():
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        content = encoded(cmyk, kind)
        assert np.array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert np.array_equal(pixels(encoded(cmyk, "TIFF")), PIXELS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (encoded(PIXELS, "ICO"), "not an image of a known format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer of Git LFS"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "a web page, not the file"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>', "an error message of a server"),
        (b'{"error": "gone"}', "an error message of a server"),
        (encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point pixels"),
        (encoded(Image.new("I", (9, 9), 70000), "TIFF"), "32-bit pixels outside 0..65535"),
        (encoded(PIXELS, "JPEG")[:4], "truncated or damaged"),
    ],
    ids=["empty", "text", "eps", "ico", "lfs", "web-page", "server", "json", "float", "thirty-two-bit", "four-bytes"],
)
def test_what_gives_no_image_gives_a_reason(content, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000"])
def test_a_file_cut_off_anywhere_in_its_pixels_is_never_an_image(kind):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    content = encoded(noise, kind)
    for length in np.linspace(0, len(content) * 0.97, 60).astype(int):
        with pytest.raises(UnreadableImageError):
            decode(content[:length])


def test_every_flipped_bit_of_a_png_is_noticed_or_harmless():
    content = encoded(PIXELS, "PNG")
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        try:
            found = pixels(bytes(flipped))
        except UnreadableImageError:
            continue
        assert np.array_equal(found, PIXELS), f"byte {place}"


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF", "JPEG2000"):
        content = encoded(PIXELS, kind)
        for _ in range(60):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 4):
                damaged[place] = rng.integers(256)
            try:
                assert decode(bytes(damaged), Limits(max_pixels=10**6)).mode == "RGB"
            except UnreadableImageError as error:
                assert str(error)


def test_a_header_that_claims_a_huge_image_is_refused_before_any_pixel_is_decoded():
    content = bytearray(encoded(PIXELS, "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own guard would warn, or raise something else
        with pytest.raises(UnreadableImageError, match="60000 x 60000 is 3,600,000,000 pixels, more than the limit"):
            decode(bytes(content))


@pytest.mark.parametrize("kind", ["AVIF", "HEIF", "JPEG2000"])
def test_newer_formats_are_refused_by_their_header_too_and_laid_on_white(kind):
    content = encoded(PIXELS, kind)
    with pytest.raises(UnreadableImageError, match="30 x 20 is 600 pixels, more than the limit of 599"):
        decode(content, Limits(max_pixels=599))
    clear = Image.fromarray(PIXELS)
    clear.putalpha(0)
    assert pixels(encoded(clear, kind)).min() >= 253


def test_heic_without_its_library_names_it(monkeypatch):
    monkeypatch.setattr("pipeline.data.decoding.HeifImageFile", None)
    with pytest.raises(MissingDecoderError, match=r"pip install 'image-feature-pipeline\[heif\]'"):
        decode(encoded(PIXELS, "HEIF"))


def test_limits_are_the_callers():
    content = encoded(PIXELS, "PNG")
    assert decode(content, Limits(max_pixels=600)).size == (30, 20)
    with pytest.raises(UnreadableImageError, match="600 pixels, more than the limit of 599"):
        decode(content, Limits(max_pixels=599))


def test_decoding_in_threads_gives_the_same_pixels():
    contents = [encoded(np.roll(PIXELS, k, 0), kind) for k in range(20) for kind in ("PNG", "JPEG", "WEBP")]
    alone = [pixels(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, alone, pool.map(pixels, contents)))


def test_files_are_read_whole_and_within_limits(tmp_path: Path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x" * 1000)
    assert read_bytes(file, Limits(max_bytes=1000)) == b"x" * 1000
    with pytest.raises(UnreadableImageError, match="1,000 bytes, more than the limit of 999"):
        read_bytes(file, Limits(max_bytes=999))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_a_device_and_a_folder_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo.jpg")
    for place in (tmp_path / "fifo.jpg", tmp_path, Path("/dev/zero")):
        with pytest.raises(UnreadableImageError, match="not a regular file"):
            read_bytes(place)


def test_missing_files_and_link_loops_say_so(tmp_path: Path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name in ("none.jpg", "loop.jpg", "nul\0.jpg"):
        with pytest.raises(UnreadableImageError, match="cannot be opened: "):
            read_bytes(tmp_path / name)


def test_names_with_newlines_and_other_bytes_are_read(tmp_path: Path):
    for name in (b"two\nlines.png", b"latin-\xe9.png"):
        file = tmp_path / os.fsdecode(name)
        file.write_bytes(b"content")
        assert read_bytes(file) == b"content"


def test_rules_are_json_with_a_version():
    assert json.loads(json.dumps(DECODE_RULES)) == DECODE_RULES
    assert DECODE_RULES["version"] == 1


def test_every_real_photograph_decodes_as_pillow_reads_it(photos: Path):
    files = sorted((photos / "hymenoptera_data").rglob("*.jp*g"))
    assert len(files) == 397
    for file in files[::8]:
        assert np.array_equal(pixels(read_bytes(file)), np.asarray(Image.open(file).convert("RGB")))
