"""The page's colours can be told apart by everybody: WCAG 2's ratios, by day and by night."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

CSS = (files("pipeline.labelling") / "page.css").read_text()
THEMES = {
    name: {key: "".join(2 * c for c in value) if len(value) == 3 else value
           for key, value in re.findall(r"--(\w+): #([0-9a-f]{3,6})", rules)}
    for name, rules in zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.DOTALL), strict=True)
}  # fmt: skip


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ratio(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_ratio_is_the_published_one():
    assert ratio("000000", "ffffff") == pytest.approx(21)
    assert ratio("777777", "ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("ground", ["paper", "soft"])
@pytest.mark.parametrize("text", ["ink", "dim", "strong", "bad"])
def test_text_and_borders_stand_out(theme, ground, text):
    assert ratio(THEMES[theme][text], THEMES[theme][ground]) >= 4.5
