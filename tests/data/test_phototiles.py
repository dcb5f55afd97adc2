"""The default data set: made on the spot once, in full, and made again when damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import names_in, write_image

from pipeline.core.errors import DataError
from pipeline.data import DATASETS, decode, load_dataset
from pipeline.data import phototiles as tiles
from pipeline.data.generated import ensure


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder of caches in which the phototiles have been made."""
    cache_dir = tmp_path_factory.mktemp("cache")
    load_dataset("phototiles", cache_dir=cache_dir)
    return cache_dir


def test_phototiles_are_952_tiles_of_18_photographs_with_every_fourth_held_out(made):
    dataset = load_dataset("phototiles", cache_dir=made)
    assert dataset.name == "phototiles"
    assert len(dataset) == 952
    assert len(dataset.classes) == 18
    assert np.bincount(dataset.labels).max() == 64
    for label in range(18):
        mine = dataset.splits[dataset.labels == label]
        assert (mine == "val").sum() == len(mine) // 4
    images = [np.asarray(decode(dataset.read(index))) for index in range(0, 952, 3)]
    assert {image.shape for image in images} == {(64, 64, 3)}
    assert min(image.std() for image in images) > 0.9
    assert len(np.unique(dataset.digests, axis=0)) == 952


@pytest.fixture
def few(monkeypatch) -> int:
    """Let three photographs do, where making all the tiles shows nothing more; return the number of their tiles."""
    monkeypatch.setattr(tiles, "PHOTOGRAPHS", {"skimage": ("coffee.png", "page.png"), "sklearn": ("china.jpg",)})
    return 54 + 12 + 60


@pytest.mark.parametrize("damage", ["removed", "changed", "truncated", "added", "manifest"])
def test_tiles_that_are_incomplete_or_damaged_are_made_again(few, tmp_path, damage):
    load_dataset("phototiles", cache_dir=tmp_path / "cache")
    folder = tmp_path / "cache/downloads/phototiles"
    file = folder / "train/coffee/05.png"
    before = file.read_bytes()
    if damage == "removed":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
    elif damage == "truncated":
        file.write_bytes(before[:100])
    elif damage == "added":
        write_image(folder / "train/intruder/x.png")
    else:
        (folder / ".manifest.json").write_text("{")
    dataset = load_dataset("phototiles", cache_dir=tmp_path / "cache")
    assert len(dataset) == few
    assert file.read_bytes() == before
    assert names_in(tmp_path / "cache/downloads") == ["phototiles"]


def test_whole_phototiles_are_left_alone(made):
    file = made / "downloads/phototiles/train/coffee/05.png"
    before = file.stat()
    load_dataset("phototiles", cache_dir=made)
    assert file.stat().st_ino == before.st_ino


def test_several_processes_may_make_the_phototiles_at_once(tmp_path):
    script = (
        "import sys; from pipeline.data import load_dataset; d = load_dataset('phototiles', cache_dir=sys.argv[1]);"
        "print(len(d), d.digests.sum())"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = {process.communicate()[0] for process in running}
    assert len(results) == 1
    assert results.pop().startswith("952 ")
    assert names_in(tmp_path / "downloads") == ["phototiles"]


def test_what_another_process_made_meanwhile_is_kept(tmp_path):
    """The other process is played by the builder itself, so that it is quicker every time."""
    folder, inodes = tmp_path / "downloads/images", []

    def make() -> None:
        ensure(folder, build, recipe="one image", cache_dir=tmp_path)

    def build(fresh: Path) -> None:
        write_image(fresh / "a.png", seed=1)
        if not inodes:
            inodes.append(0)
            make()
            inodes.append(folder.stat().st_ino)

    make()
    assert folder.stat().st_ino == inodes[1]
    assert names_in(folder.parent) == ["images"]


def test_packages_that_ship_fewer_photographs_give_a_note_and_none_an_error(made, tmp_path, monkeypatch):
    fewer = {"skimage": ("coffee.png", "no-longer-shipped.png"), "sklearn": ("china.jpg",), "not_installed": ("x.png",)}
    monkeypatch.setattr(tiles, "PHOTOGRAPHS", fewer)
    monkeypatch.setitem(tiles._PLACES, "not_installed", "data")
    dataset = load_dataset("phototiles", cache_dir=tmp_path)
    assert dataset.classes == ("china", "coffee")
    assert any("left out: no-longer-shipped.png, x.png" in note for note in dataset.notes)
    monkeypatch.setattr(tiles, "PHOTOGRAPHS", {"sklearn": ("china.jpg",)})
    with pytest.raises(DataError, match="photographs that come with scikit-image and scikit-learn"):
        load_dataset("phototiles", cache_dir=tmp_path)


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "downloads").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"Cannot make .*downloads/phototiles: "):
        load_dataset("phototiles", cache_dir=tmp_path)


def test_every_entry_says_what_it_is_in_one_line():
    for name, entry in DATASETS.items():
        assert entry.name == name != "downloads"
        assert 10 < len(entry.description) < 110
        assert "\n" not in entry.description
