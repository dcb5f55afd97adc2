"""Folders as data sets: what is listed, in which split and class, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import write_image, write_images

from pipeline.core.errors import DataError, UnknownNameError
from pipeline.data import Limits, list_images, load_dataset


@pytest.fixture
def load(tmp_path: Path):
    def load(folder: Path, **settings):
        return load_dataset(str(folder), cache_dir=tmp_path / "cache", **settings)

    return load


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "my photos"


def rows(dataset) -> dict[str, tuple[str, str]]:
    names = [dataset.classes[label] if label >= 0 else "" for label in dataset.labels]
    return dict(zip(dataset.paths, zip(dataset.splits.tolist(), names, strict=True), strict=True))


def test_split_folders_give_splits_and_class_folders_give_classes(load, root):
    write_images(root, "train/cat/1.png", "train/dog/2.jpg", "val/dog/3.png", "test/cat/4.jpeg")
    dataset = load(root)
    assert rows(dataset) == {
        "train/cat/1.png": ("train", "cat"),
        "train/dog/2.jpg": ("train", "dog"),
        "val/dog/3.png": ("val", "dog"),
        "test/cat/4.jpeg": ("test", "cat"),
    }
    assert dataset.name == "my-photos"
    assert dataset.select("val").tolist() == [dataset.paths.index("val/dog/3.png")]
    assert dataset.read(0) == (root / dataset.paths[0]).read_bytes()
    assert len(dataset) == 4
    assert dataset.labels.dtype == np.int64


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_val_goes_by_other_names_too(load, root, name):
    write_images(root, "train/a/1.png", "train/b/2.png", f"{name}/a/3.png")
    assert rows(load(root))[f"{name}/a/3.png"] == ("val", "a")


def test_a_class_that_is_missing_from_one_split_shifts_no_other(load, root):
    write_images(root, "train/a/1.png", "train/b/2.png", "train/d/3.png", "val/b/4.png", "val/c/5.png", "val/d/6.png")
    dataset = load(root)
    assert dataset.classes == ("a", "b", "c", "d")
    assert rows(dataset)["val/d/6.png"] == ("val", "d")


def test_nested_folders_belong_to_their_class_and_never_merge_by_leaf_name(load, root):
    write_images(root, "a/x/1.png", "a/x/y/2.png", "b/x/3.png", "b/4.png")
    assert {path: name for path, (_, name) in rows(load(root)).items()} == {
        "a/x/1.png": "a",
        "a/x/y/2.png": "a",
        "b/x/3.png": "b",
        "b/4.png": "b",
    }


def test_a_class_may_be_called_train(load, root):
    write_images(root, "train/1.png", "tram/2.png")
    assert load(root).classes == ("train", "tram")


def test_a_flat_folder_is_unlabelled(load, root):
    write_images(root, "b.png", "a.jpg")
    dataset = load(root)
    assert dataset.paths == ["a.jpg", "b.png"]
    assert dataset.labels.tolist() == [-1, -1]
    assert dataset.splits.tolist() == ["none", "none"]
    assert dataset.classes == ()


def test_hidden_files_are_passed_over_silently_and_others_are_listed_with_a_reason(load, root):
    write_images(root, "a/1.png", "b/2.png", "a/.hidden.png", ".git/x.png", "__MACOSX/a/1.png", "3.png")
    for name in ("a/Thumbs.db", "b/.DS_Store", "a/notes.txt", "b/anim.gif", "b/LICENSE"):
        (root / name).write_text("x")
    dataset = load(root)
    assert dataset.paths == ["a/1.png", "b/2.png"]
    assert dict(dataset.skipped) == {
        "a/notes.txt": "'.txt' is no image's extension",
        "b/anim.gif": "GIF files of a folder are not taken; name one in a CSV to use its first frame",
        "b/LICENSE": "no extension",
        "3.png": "beside the class folders, so it has no class",
    }


def test_stray_images_and_folders_beside_the_splits_are_listed(load, root):
    write_images(root, "train/a/1.png", "train/b/2.png", "train/3.png", "extra/a/4.png", "5.png")
    skipped = dict(load(root).skipped)
    assert sorted(skipped) == ["5.png", "extra", "train/3.png"]


def test_what_cannot_be_read_is_skipped_and_no_row_shifts(load, root):
    write_images(root, "a/1.png", "a/3.png", "b/1.png")
    os.mkfifo(root / "a/2.png")
    (root / "a/4.png").symlink_to(root / "nowhere.png")
    (root / "a/5.png").symlink_to(root / "a/5.png")
    (root / "a/0.png").write_bytes(b"x" * 5000)
    dataset = load(root, limits=Limits(max_bytes=4000))
    assert rows(dataset).keys() == {"a/1.png", "a/3.png", "b/1.png"}
    assert [dataset.classes[label] for label in dataset.labels] == ["a", "a", "b"]
    assert dict(dataset.skipped) == {
        "a/2.png": "not a regular file",
        "a/4.png": "a link to nothing",
        "a/5.png": "cannot be followed: Too many levels of symbolic links",
        "a/0.png": "5,000 bytes, more than the limit of 4,000",
    }


def test_links_are_followed_once_and_loops_end(load, root, tmp_path):
    write_images(root, "a/1.png", "b/2.png")
    write_images(tmp_path / "elsewhere", "deep/3.png")
    (root / "a/file.png").symlink_to(write_image(tmp_path / "elsewhere/file"))
    (root / "a/linked").symlink_to(tmp_path / "elsewhere")
    (root / "a/linked-again").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to(root)
    (root / "a/far-up").symlink_to("/")
    (tmp_path / "elsewhere/back").symlink_to(root / "a")
    dataset = load(root)
    assert dataset.paths == ["a/1.png", "a/file.png", "a/linked/deep/3.png", "b/2.png"]
    reasons = {path: reason for path, reason in dataset.skipped if "/file" not in path}
    assert reasons == {
        "a/up": "a link back to a folder that holds it",
        "a/far-up": "a link back to a folder that holds it",
        "a/linked/back": "a link back to a folder that holds it",
        "a/linked-again": "a second link to the same folder",
    }


def test_a_web_of_links_is_listed_in_no_time(root):
    for k in range(40):
        write_images(root, f"a/{k}/image.png")
        for other in ((k + 1) % 40, (k + 7) % 40):
            (root / f"a/{k}/to-{other}").symlink_to(root / f"a/{other}")
    assert len({path.resolve() for path in list_images(root)}) == 40
    assert len(list_images(root)) < 40 * 42


def test_names_with_newlines_and_other_bytes_are_data_like_any(load, root):
    write_images(root, "a/1.png", "b/2.png")
    strange = [os.fsdecode(b"two\nlines.png"), os.fsdecode(b"latin-\xe9.png")]
    for name in strange:
        write_image(root / "a" / name)
    dataset = load(root)
    assert {f"a/{name}" for name in strange} < set(dataset.paths)
    assert all(dataset.read(index) for index in range(4))


def test_the_listing_is_the_same_every_time(load, root):
    write_images(root, *(f"{name}/{number}.png" for name in "badc" for number in (3, 11, 2)))
    first, second = load(root), load(root)
    assert first.paths == second.paths == sorted(first.paths)
    assert np.array_equal(first.digests, second.digests)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "No images in .*: looked for .avif, .bmp, "),
        (["notes.txt"], r"No images in .* Passed over: 'notes.txt' \('.txt' is no image's extension\)"),
        (["a/1.png"], "has one class, 'a'; telling images apart takes at least two"),
        (["a/1.png", "b/notes.txt"], "No usable image in .* for class 'b'"),
        (["train/1.png", "val/2.png"], "No image of .* lies in a class folder: train/1.png, val/2.png. Expected"),
        (["x/y/a/1.png", "x/y/b/1.png"], "has one class, 'x'.* Did you mean '.*/x/y'"),
        (["x/train/a/1.png", "x/val/a/1.png"], "has one class, 'x'.* Did you mean '.*/x'"),
        (["train/a/1.png", "train/b/2.png", "val/a/1.png", "valid/a/1.png"], "Two folders for one split"),
    ],
)
def test_unusable_folders_are_one_clear_error(load, root, names, message):
    root.mkdir()
    write_images(root, *(name for name in names if name.endswith("png")))
    for name in names:
        if name.endswith("txt"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("x")
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_folder_whose_every_file_fails_is_an_error_that_says_why(load, root):
    write_images(root, "a/1.png", "b/2.png")
    with pytest.raises(DataError, match=r"No usable image in .*: a/1.png: .* more than the limit of 10"):
        load(root, limits=Limits(max_bytes=10))


def test_a_missing_folder_and_an_unknown_name_are_told_apart(load, tmp_path):
    with pytest.raises(DataError, match=r"No such folder or CSV file: .*/none' \(No such file or directory\)"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match=r"'phototile', and no such folder here\. Did you mean 'phototiles'"):
        load_dataset("phototile", cache_dir=tmp_path)
    with pytest.raises(DataError, match="neither a folder of images nor a table of them"):
        load(write_image(tmp_path / "one.png"))
    with pytest.raises(UnknownNameError, match="Unknown split 'valid'"):
        load(write_images(tmp_path / "x", "a.png")).select("valid")


def test_a_folder_that_may_not_be_listed_is_a_clear_error(root, tmp_path):
    write_images(root, "a/1.png", "b/2.png")
    root.chmod(0)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipeline.data import load_dataset\n"
        "import pipeline.data.folders\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: pipeline.data.folders.list_folder(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    ran = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)
    root.chmod(0o755)
    assert ran.stdout == f"Cannot list the folder {root}: Permission denied.\n", ran.stderr


def test_predict_lists_one_file_or_a_whole_tree_without_labels(root):
    write_images(root, "1.png", "deep/er/2.jpg", ".hidden.png")
    assert list_images(root) == [root / "1.png", root / "deep/er/2.jpg"]
    odd = write_image(root / "picture.dat")
    assert list_images(odd) == [odd]
    with pytest.raises(DataError, match="No such image or folder"):
        list_images(root / "none")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="No images in"):
        list_images(root / "empty")


def test_the_tutorials_photographs_are_listed_as_the_tutorial_counts_them(load, photos):
    dataset = load(photos / "hymenoptera_data")
    assert dataset.classes == ("ants", "bees")
    assert [len(dataset.select(split)) for split in ("train", "val", "test", "none")] == [244, 153, 0, 0]
    assert [path for path, _ in dataset.skipped] == ["train/ants/imageNotFound.gif"]
    flat = load(photos / "cats_dogs/val/cats")
    assert len(flat) == len(flat.select("none")) == 225


def test_a_class_that_two_systems_spell_differently_is_one_and_files_keep_their_bytes(load, root):
    composed, apart = "\u1ed3ng", "o\u0302\u0300ng"
    write_images(root, f"train/{composed}/1.png", "train/tea/2.png", f"val/{apart}/3.png", "val/tea/4.png")
    dataset = load(root)
    assert dataset.classes == ("tea", composed)
    assert rows(dataset)[f"val/{apart}/3.png"] == ("val", composed)
    assert any(composed in note for note in dataset.notes)
    assert dataset.read(dataset.paths.index(f"val/{apart}/3.png"))


def test_a_class_in_the_other_spelling_alone_is_shown_in_one_without_a_note(load, root):
    write_images(root, "train/cafe\u0301/1.png", "train/tea/2.png", "val/cafe\u0301/3.png", "val/tea/4.png")
    dataset = load(root)
    assert dataset.classes == ("caf\u00e9", "tea") and not dataset.notes


def test_what_phones_and_browsers_write_is_taken_by_its_content(tmp_path, load, monkeypatch):
    names = ("a/1.jfif", "a/2.JPE", "b/3.avif", "b/4.jp2", "b/5.heic")  # all of them PNG files, which is no matter
    write_images(tmp_path / "data", *names)
    assert load(tmp_path / "data").paths == list(names)
    monkeypatch.setattr("pipeline.data.listing._has_heif", lambda: False)
    dataset = load(tmp_path / "data")
    assert dataset.paths == list(names[:4]) and dataset.skipped[0][0] == "b/5.heic"
    assert any(note.startswith("1 files are left out: HEIC needs pillow-heif: pip install") for note in dataset.notes)
