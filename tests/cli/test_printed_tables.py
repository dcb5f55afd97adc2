"""Tables in a terminal: columns under each other in any script, and no wider than was promised."""

from __future__ import annotations

import unicodedata

import pytest

from pipeline.cli.tables import WIDTH, columns_of, fitting, print_table

NAMES = ["ants", "gạch đỏ", unicodedata.normalize("NFD", "gạch đỏ"), "中文文字", "ｱﾘ", "حصى", "bees 🐝"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [("ants", 4), (NAMES[1], 7), (NAMES[2], 7), ("中文", 4), ("ｱﾘ", 2), ("🐝", 2), ("", 0)],
)
def test_a_text_takes_as_many_columns_as_a_terminal_draws(text, columns):
    assert columns_of(text) == columns


def test_numbers_stand_under_each_other_whatever_the_names(capsys):
    print_table(("class", "images"), [(name, 7 + number) for number, name in enumerate(NAMES)])
    assert len({columns_of(line) for line in capsys.readouterr().out.splitlines()}) == 1


@pytest.mark.parametrize("letter", ["a", "字", "🐝"])
def test_a_table_is_no_wider_than_promised_and_says_what_it_left_out(letter, capsys):
    names = [f"a-long-beginning-{end}{letter * 90}{end}" for end in ("one", "two")]
    print_table(("run", "images"), [(name, "12") for name in names], ("run",))
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert max(map(columns_of, lines)) <= WIDTH and [line.split()[0][-3:] for line in lines[1:]] == ["one", "two"]
    assert "note: … is a-long-beginning-" in told.err
    assert columns_of(fitting(names[0])) in (WIDTH - 1, WIDTH)
