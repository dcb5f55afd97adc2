"""Fonts that draw names in any script: FiraGO, from a package; for Chinese, Japanese and Korean what is installed."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import ImageFont

FIRA_GO = "figo"  # Latin, Greek, Cyrillic, Arabic, Hebrew, Thai, Georgian and Devanagari
_CJK = "mplfonts", "NotoSansCJKsc-Regular.otf"
_LACKING = ("Some names have characters that no font here has; pictures show boxes for them. For Chinese, Japanese and "
            "Korean: pip install 'image-feature-pipeline[cjk]', or install a font of the system.")
_LOG = logging.getLogger(__name__)  # the command line prints what is logged in this room
_NOTHING = "\uffff"  # no font has this one: it is drawn as what is missing is


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the font that draws the most of a text; the first of equals."""
    best: ImageFont.FreeTypeFont | None = None
    least = len(text) + 1
    for number in range(_count()):
        font = _sized(number, size)
        if (lacking := sum(not _draws(number, character) for character in text)) < least:
            best, least = font, lacking
        if not least:
            break
    assert best is not None
    if least:
        _LOG.info(_LACKING)
    return best


def files_for(text: str) -> list[bytes]:
    """Return the content of the fonts that draw a text together, the first for most of it."""
    left, needed = set(text), list[int]()
    for number in range(_count()):
        if drawn := {character for character in left if _draws(number, character)}:
            left -= drawn
            needed.append(number)
    if left:
        _LOG.info(_LACKING)
    return [_sources()[number] for number in needed or [0]]


@cache
def _count() -> int:
    return len(_sources())


@cache
def _sources() -> list[bytes]:
    return list(_found())


def _found() -> Iterator[bytes]:
    try:
        import pymupdf_fonts

        yield pymupdf_fonts.myfont(FIRA_GO)
    except ImportError:  # an installation without dependencies
        yield ImageFont.load_default(12).path.getvalue()  # type: ignore[union-attr]
    package, name = _CJK
    if (spec := find_spec(package)) and spec.submodule_search_locations:
        yield (Path(spec.submodule_search_locations[0]) / "fonts" / name).read_bytes()
    else:
        yield from _of_system("鸟", "새", "と")


def _of_system(*characters: str) -> Iterator[bytes]:
    """Yield the files of the system's fonts for some characters, where it can tell them."""
    if not (ask := shutil.which("fc-match")):
        return
    seen = set()
    for character in characters:
        told = subprocess.run([ask, "-f", "%{file}", f":charset={ord(character):x}"], capture_output=True, text=True,
                              check=False, timeout=10).stdout.strip()  # fmt: skip
        if told and told not in seen and Path(told).is_file():
            seen.add(told)
            yield Path(told).read_bytes()


@cache
def _sized(number: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(BytesIO(_sources()[number]), size)


@cache
def _draws(number: int, character: str) -> bool:
    """Tell whether a font has a character: it draws something else than for one that no font has."""
    font = _sized(number, 12)
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_NOTHING))
