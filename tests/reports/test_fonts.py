"""Names of classes in any script are drawn, not boxes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.reports.fonts import files_for, font_for
from pipeline.reports.pictures import grid
from pipeline.reports.plots import _as_png, scatter

NAMES = {"Vietnamese": "chim sẻ Việt", "Arabic": "عصفور", "Hebrew": "ציפור", "Greek": "πουλί", "Russian": "воробей",
         "Thai": "นก", "Hindi": "नीलकंठ", "Georgian": "ჩიტი", "French": "œuf à l’aïoli"}  # fmt: skip


def missing(text: str) -> list[str]:
    font = font_for(text, 24)
    nothing = bytes(font.getmask("\uffff"))
    return [each for each in text if not each.isspace() and bytes(font.getmask(each)) == nothing]


@pytest.mark.parametrize("language", NAMES)
def test_every_letter_is_drawn(language):
    assert missing(NAMES[language]) == []


def test_names_of_several_scripts_stand_on_one_page_and_each_differs():
    white = Image.new("RGB", (150, 20), "white")
    page = np.asarray(grid([(white, [name]) for name in NAMES.values()], columns=1).convert("L"))
    lines = np.array_split(page, len(NAMES))
    assert all((line < 128).sum() > 20 for line in lines)
    assert len({line.tobytes() for line in lines}) == len(NAMES)


def test_plots_draw_them_too():
    pytest.importorskip("resvg_py")
    drawn = []
    for name in ("นก", "ฟก", "चछ"):
        plot = scatter({name: [(0, 0)], "b": [(1, 1)]}, title="")
        drawn.append(np.asarray(Image.open(io.BytesIO(_as_png(plot))).convert("RGBA")))
    assert not np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_a_text_that_no_font_draws_is_drawn_by_one_all_the_same_and_that_is_said(caplog):
    caplog.set_level("INFO", "pipeline")
    assert font_for("ant", 12) and files_for("ant") and not caplog.messages
    assert font_for("\U0001f9ff", 12).getlength("\U0001f9ff") > 0
    assert files_for("\U0001f9ff")
    assert len(set(caplog.messages)) == 1 and "no font here has" in caplog.messages[0]
