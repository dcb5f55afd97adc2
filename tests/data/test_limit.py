"""Only the first images: of each class and split in proportion."""

from __future__ import annotations

import pytest
from images import write_images

from pipeline.cli import main
from pipeline.core.errors import DataError
from pipeline.data import load_dataset
from pipeline.stage_one.extraction import extract


@pytest.fixture
def folder(tmp_path):
    counts = {"train/ant": 8, "train/bee": 4, "val/ant": 2, "val/bee": 2}
    names = [f"{place}/{number}.png" for place, count in counts.items() for number in range(count)]
    return write_images(tmp_path / "photos", *names)


def limited(folder, count):
    return load_dataset(f"{folder}[:{count}]", cache_dir=folder.parent / "cache")


def test_every_class_of_every_split_gives_its_share(folder):
    dataset = limited(folder, 8)
    assert dataset.paths == [*(f"train/ant/{number}.png" for number in range(4)), "train/bee/0.png", "train/bee/1.png",
                             "val/ant/0.png", "val/bee/0.png"]
    assert dataset.name == "photos-first-8"
    assert "Only 8 of 16 images, by the limit." in dataset.notes


def test_of_a_flat_folder_it_is_the_first_images(tmp_path):
    write_images(tmp_path / "flat", *(f"{number}.png" for number in range(5)))
    assert limited(tmp_path / "flat", 2).paths == ["0.png", "1.png"]


def test_a_limit_beyond_the_images_is_none(folder):
    assert limited(folder, 16).name == "photos"


@pytest.mark.parametrize("count", [-1, 0, 3])
def test_too_low_a_limit_says_what_it_takes(folder, count):
    with pytest.raises(DataError, match=f"limit of {count} images is too low .* it takes 4 at the least"):
        limited(folder, count)


def test_rows_of_the_first_images_serve_the_whole_set(folder):
    cache_dir = folder.parent / "cache"
    first = extract(f"{folder}[:8]", "pixels", cache_dir=cache_dir)
    everything = extract(str(folder), "pixels", cache_dir=cache_dir)
    assert (first.rows, everything.rows, everything.computed, everything.reused) == (8, 16, 8, 8)
    with first.open() as cache:
        assert len(cache) == 8  # the smaller one stays


def test_commands_take_the_same_limit(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--data", str(folder), "--limit", "8", "--backbone", "pixels"]
    assert main(["extract", *common]) == 0
    assert main(["train-head", *common, "--head", "nearest-centroid"]) == 0
    assert "photos-first-8" in capsys.readouterr().out
