"""Which images train, choose and are kept: by content, in each class alike, and for good."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from images import photograph, write_images
from PIL import Image

from pipeline.core.errors import DataError
from pipeline.data import load_dataset
from pipeline.data.perceptual import groups_of, perceptual_hash


def test_the_split_goes_by_content_so_that_adding_renaming_and_copying_moves_no_image(tmp_path):
    root = write_images(tmp_path / "r", *(f"{name}/{number}.png" for name in "ab" for number in range(60)))

    def split_of_contents() -> dict[bytes, str]:
        dataset = load_dataset(str(root), cache_dir=tmp_path / "cache")
        found: dict[bytes, str] = {}
        for row, split in zip(dataset.digests, dataset.splits, strict=True):
            assert found.setdefault(row.tobytes(), split) == split, "duplicates are on one side"
        return found

    before = split_of_contents()
    assert 8 <= sum(split == "val" for split in before.values()) <= 42
    write_images(root, *(f"{name}/new{number}.png" for name in "abc" for number in range(20)))
    (root / "a/7.png").rename(root / "b/renamed.png")
    (root / "a/copy.png").write_bytes((root / "b/9.png").read_bytes())
    after = split_of_contents()
    assert before.items() <= after.items()


def test_the_share_of_val_is_the_users_and_checked(tmp_path):
    root = write_images(tmp_path / "r", *(f"{name}/{number}.png" for name in "ab" for number in range(100)))
    counts = []
    for share in (0, 0.2, 0.5):
        counts.append(len(load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=share).select("val")))
    assert counts[0] == 0 < counts[1] < counts[2]
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(DataError, match="share of val must be at least 0 and below 1, not"):
            load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=share)


def test_given_splits_stay_and_val_is_taken_from_train_only_if_asked(tmp_path):
    names = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in "ab" for number in range(40)]
    root = write_images(tmp_path / "r", *names)
    plain = load_dataset(str(root), cache_dir=tmp_path / "c")
    assert [len(plain.select(split)) for split in ("train", "val", "test")] == [80, 0, 80]
    assert plain.notes == ("There is no val split; --val-fraction takes one from train.",)
    asked = load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=0.3)
    assert len(asked.select("test")) == 80
    assert 0 < len(asked.select("val")) < 60
    write_images(root, "val/a/1.png")
    given = load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=0.3)
    assert [len(given.select(split)) for split in ("train", "val", "test")] == [80, 1, 80]


def split_of(dataset, *names: str) -> dict[str, str]:
    return {path: split for path, split in zip(dataset.paths, dataset.splits.tolist(), strict=True)
            if not names or path in names}  # fmt: skip


def test_every_class_gives_its_share_of_each_split_and_small_ones_one_image(tmp_path):
    sizes = {"a": 100, "b": 40, "c": 5, "d": 2, "e": 1}
    root = write_images(tmp_path / "r", *(f"{name}/{number}.png" for name, size in sizes.items()
                                          for number in range(size)))  # fmt: skip
    dataset = load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=0.2, test_fraction=0.1)
    counts = {split: np.bincount(dataset.labels[dataset.select(split)], minlength=5).tolist()
              for split in ("train", "val", "test")}  # fmt: skip
    assert counts == {"train": [70, 28, 3, 1, 1], "val": [20, 8, 1, 1, 0], "test": [10, 4, 1, 0, 0]}
    assert dataset.notes == (
        "Split by content within each class: 103 train, 30 val, 15 test images, for a share of 0.2, 0.1.",
        "No val image of class 'e': too few.",
        "No test image of class 'd', 'e': too few.",
    )


def test_the_same_images_are_split_alike_wherever_and_in_whatever_steps_they_are_loaded(tmp_path):
    root = write_images(tmp_path / "r", *(f"{name}/{number}.png" for name in "ab" for number in range(40)))
    first = load_dataset(str(root), cache_dir=tmp_path / "c", val_fraction=0.25, test_fraction=0.25)
    shutil.copytree(root, tmp_path / "copy")
    second = load_dataset(str(tmp_path / "copy"), cache_dir=tmp_path / "other", val_fraction=0.25, test_fraction=0.25)
    assert split_of(first) == split_of(second)
    part = load_dataset(f"{root}[:20]", cache_dir=tmp_path / "third", val_fraction=0.25)
    whole = load_dataset(str(root), cache_dir=tmp_path / "third", val_fraction=0.25)
    assert split_of(part) == split_of(whole, *part.paths)
    assert len(whole.select("val")) == 20


def test_a_damaged_or_read_only_memory_costs_nothing_but_itself(tmp_path):
    root = write_images(tmp_path / "r", *(f"{name}/{number}.png" for name in "ab" for number in range(20)))
    first = split_of(load_dataset(str(root), cache_dir=tmp_path / "c"))
    (tmp_path / "c/splits.sqlite").write_bytes(b"rubbish" * 999)
    assert split_of(load_dataset(str(root), cache_dir=tmp_path / "c")) == first


def test_test_is_taken_from_train_where_it_is_asked_for_and_there_is_none(tmp_path):
    root = write_images(tmp_path / "r", *(f"{split}/{name}/{number}.png" for split in ("train", "val") for name in "ab"
                                          for number in range(20)))  # fmt: skip
    dataset = load_dataset(str(root), cache_dir=tmp_path / "c", test_fraction=0.25)
    assert [len(dataset.select(split)) for split in ("train", "val", "test")] == [30, 40, 10]
    assert all(path.startswith("train") for path, split in split_of(dataset).items() if split == "test")


def test_shares_that_leave_nothing_to_train_on_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"1\.1 together"):
        load_dataset("phototiles", cache_dir=tmp_path, val_fraction=0.6, test_fraction=0.5)


def variants(folder: Path, number: int) -> list[str]:
    """Write a picture as a camera, an editor and a phone would keep it."""
    picture = photograph(320, 240, seed=number)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, quality in (("a", picture, 95), ("b", picture.resize((160, 120)), 90), ("c", picture, 30),
                                 ("d", picture.crop((5, 4, 314, 236)), 90)):  # fmt: skip
        image.save(folder / f"{number}{name}.jpg", quality=quality)
    return [f"{folder.name}/{number}{name}.jpg" for name in "abcd"]


def test_images_that_look_the_same_stay_on_one_side_if_asked(tmp_path):
    groups = [variants(tmp_path / "r" / label, number) for number in range(12) for label in ("xy"[number % 2],)]
    apart = split_of(load_dataset(str(tmp_path / "r"), cache_dir=tmp_path / "c"))
    assert any(len({apart[path] for path in group}) > 1 for group in groups)
    dataset = load_dataset(str(tmp_path / "r"), cache_dir=tmp_path / "c", group_duplicates=True)
    together = split_of(dataset)
    assert all(len({together[path] for path in group}) == 1 for group in groups)
    assert 8 <= sum(split == "val" for split in together.values()) <= 16
    assert "48 images look like another one, in whose split they are." in dataset.notes
    # a later copy of an image goes where that one is
    picture = Image.open(tmp_path / "r" / groups[0][0])
    picture.resize((200, 150)).save(tmp_path / "r/x/later.jpg")
    later = split_of(load_dataset(str(tmp_path / "r"), cache_dir=tmp_path / "c", group_duplicates=True))
    assert together.items() <= later.items() and later["x/later.jpg"] == together[groups[0][0]]


def test_distinct_photographs_are_not_grouped_and_the_same_picture_is(photos):
    files = sorted((photos / "cats_dogs").rglob("*.jpg"))
    groups = groups_of(np.array([perceptual_hash(Image.open(file)) for file in files]))
    numbers, counts = np.unique(groups, return_counts=True)
    (same,) = numbers[counts > 1]
    assert [files[index].name for index in np.flatnonzero(groups == same)] == ["dog.180.jpg", "dog.74.jpg"]
