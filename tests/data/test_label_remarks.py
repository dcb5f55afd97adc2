"""What would be a wrong result without a word: labels that cannot be learned, contradict each other, or get lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from images import write_image, write_images
from test_sources import add

from pipeline.core.errors import DataError
from pipeline.data import load_dataset


@pytest.fixture
def load(tmp_path: Path):
    return lambda name="data": load_dataset(str(tmp_path / name), cache_dir=tmp_path / "cache")


def photos(root: Path, *folders: str) -> None:
    write_images(root, *(f"{folder}/{folder.replace('/', '-')}-{number}.png" for folder in folders
                         for number in range(2)))  # fmt: skip


def test_classes_of_val_that_train_lacks_are_named_with_the_number_of_images(tmp_path, load):
    photos(tmp_path / "data", "train/ants", "train/bees", "val/Ants", "val/bees", "val/wasps")
    notes = load().notes
    assert "No head can be right about 4 of 6 val images: train has none of class 'Ants', 'wasps'." in notes
    assert any("'Ants' and 'ants'" in note for note in notes)


def test_a_number_written_in_two_ways_and_what_may_be_a_missing_value_are_told(tmp_path, load):
    photos(tmp_path / "data", "train/1", "train/1.0", "train/2", "train/NaN", "train/v1.0")
    notes = load().notes
    assert any("are one number: '1' and '1.0'. " in note for note in notes)
    assert "'NaN' is taken for a class. If it stands for no label, leave it empty." in notes


def test_a_data_set_that_is_all_right_gets_no_remark(tmp_path, load):
    photos(tmp_path / "data", "train/ants", "train/bees", "val/ants", "val/bees")
    assert load().notes == ()


def test_data_without_any_label_say_so(tmp_path, load):
    write_images(tmp_path / "data", "0.png", "1.png")
    assert any("No image has a label" in note for note in load().notes)


def test_one_photo_under_two_labels_is_counted_and_named(tmp_path, load):
    photos(tmp_path / "data", "ants", "bees")
    for name in ("ants/copy.png", "bees/other.png"):  # one copy of its own class, one of another
        (tmp_path / "data" / name).write_bytes((tmp_path / "data/ants/ants-0.png").read_bytes())
    (note,) = [note for note in load().notes if "several labels" in note]
    assert note.startswith("1 photos have several labels") and "'bees/other.png' (bees)" in note


def test_class_folders_that_are_not_utf_8_are_shown_as_windows_1252_with_a_note(tmp_path, load):
    photos(tmp_path / "data", os.fsdecode(b"caf\xe9"), "tea")
    dataset = load()
    assert dataset.classes == ("café", "tea") and dataset.paths[0].startswith(os.fsdecode(b"caf\xe9/"))
    assert any("Windows-1252: café" in note for note in dataset.notes)


def shard(place: Path, members: list[tuple[str, str]]) -> None:
    """Write a tar of images, by number, and of labels, by text, in the order given."""
    with tarfile.open(place, "w") as archive:
        for number, (name, label) in enumerate(members):
            if label:
                add(archive, name, label.encode())
            else:
                image = write_image(place.with_name("one.png"), seed=number)
                add(archive, name, image.read_bytes())


def test_labels_of_a_tar_in_any_order_are_paired(tmp_path, load):
    shard(tmp_path / "data.tar", [("b.cls", "bees"), ("a.png", ""), ("b.png", ""), ("c.png", ""), ("a.cls", "ants")])
    dataset = load("data.tar")
    assert dataset.classes == ("ants", "bees") and dataset.labels.tolist() == [0, 1, -1]


def test_keys_with_dots_are_paired_by_the_whole_name_where_every_label_has_its_image(tmp_path, load):
    times = ("2024-05-01_12.10.00", "2024-05-01_12.50.00")
    shard(tmp_path / "data.tar", [(f"{time}.{kind}", label) for time, label in zip(times, ("ants", "bees"), strict=True)
                                  for kind, label in (("png", ""), ("cls", label))])  # fmt: skip
    dataset = load("data.tar")
    assert [dataset.classes[label] for label in dataset.labels] == ["ants", "bees"]


def test_several_images_of_one_sample_share_its_label(tmp_path, load):
    shard(tmp_path / "data.tar", [("a.left.png", ""), ("a.right.png", ""), ("a.cls", "ants"), ("b.left.png", ""),
                                  ("b.cls", "bees")])  # fmt: skip
    assert load("data.tar").labels.tolist() == [0, 0, 1]


def test_two_labels_in_one_key_are_an_error_that_names_both(tmp_path, load):
    shard(tmp_path / "data.tar", [("a.left.png", ""), ("a.cls", "ants"), ("a.right.cls", "bees"), ("b.png", ""),
                                  ("b.cls", "bees")])  # fmt: skip
    with pytest.raises(DataError, match=r"'a\.cls' and 'a\.right\.cls' tell different labels of one image, 'a'"):
        load("data.tar")


@pytest.mark.parametrize(("labels", "kind"), [([[0], [1]], "list"), ([0.0, 1.0], "double")])
def test_parquet_labels_of_another_kind_are_an_error_that_says_what_was_found(tmp_path, load, labels, kind):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [write_image(tmp_path / f"{seed}.png", seed=seed).read_bytes() for seed in range(2)]
    parquet.write_table(pa.table({"image": images, "label": labels}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=f"the column 'label' holds {kind}"):
        load("data.parquet")


LISTED = """
import sys
from pipeline.data import load_dataset
print(ascii(load_dataset("data", cache_dir="cache").classes))
"""


def test_a_process_that_takes_file_names_for_ascii_sees_the_same_classes(tmp_path):
    photos(tmp_path / "data", "train/café", "train/чай", "val/café", "val/чай")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    found = [subprocess.run([sys.executable, "-c", LISTED], cwd=tmp_path, capture_output=True, text=True, check=True,
                            env={**plain, **more}).stdout
             for more in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})]
    assert found[0] == found[1] and r"caf\xe9" in found[0]
