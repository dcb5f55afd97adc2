"""What a program has in its hands is a data set like any other: named by its content, reusable, with all guarantees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finetuning_support import one_thread, small_photos  # noqa: F401

import pipeline
from pipeline.core.errors import DataError
from pipeline.data import on_disk


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = small_photos(tmp_path)
    return [tmp_path / "photos" / path for path in dataset.paths], [dataset.classes[label] for label in dataset.labels]


def features(data, **more) -> tuple[np.ndarray, list[str], int]:
    done = pipeline.extract(data, "pixels", **more)
    with done.open() as cache:
        return cache.read_rows(), [cache.classes[label] for label in cache.labels], done.computed


def ways(paths: list[Path], labels: list[str]) -> dict[str, object]:
    pd = pytest.importorskip("pandas")
    relative = [str(path.relative_to(Path.cwd())) for path in paths]
    return {
        "rows": list(zip(paths, labels, strict=True)),
        "columns": (paths, labels),
        "mapping": dict(zip(relative, labels, strict=True)),
        "frame": pd.DataFrame({"File_Name": relative, "Class": labels, "more": 0}),
        "three": list(zip(paths, labels, ["train"] * len(paths), strict=True)),
    }


@pytest.mark.parametrize("way", ["rows", "columns", "mapping", "frame", "three"])
def test_files_with_labels_have_the_features_that_their_folder_has(way, photos):
    expected, names, _ = features(Path("photos"))
    found, labels, computed = features(ways(*photos)[way])
    assert labels == names == photos[1]
    np.testing.assert_array_equal(found, expected)
    assert computed == 0  # a row belongs to an image's content, whatever lists it


def test_the_same_content_has_the_same_name_and_trains_and_is_found_again(photos):
    rows = list(zip(*photos, strict=True))
    assert on_disk(rows) == on_disk(tuple(zip(*rows, strict=True))) != on_disk(rows[1:])
    pipeline.extract(rows, "pixels")
    run = pipeline.train_head("logistic", rows, "pixels")
    assert Path(run.config()["dataset"]["data"]).is_file()
    assert pipeline.train_head("logistic", on_disk(rows), "pixels").path == run.path
    assert pipeline.evaluate_runs([run], rows[:8])[0].scores["n"] == 8


def test_what_load_dataset_returned_keeps_its_splits(photos):
    dataset = pipeline.load_dataset("photos")
    with pipeline.extract(dataset, "pixels").open() as cache:
        assert (cache.splits == dataset.splits).all() and (cache.labels == dataset.labels).all()


def test_arrays_are_the_very_pixels(photos):
    rng = np.random.default_rng(0)
    arrays, labels = rng.integers(0, 256, (12, 40, 48, 3), dtype=np.uint8), ["a", "b"] * 6
    place = on_disk((arrays, labels))
    assert on_disk((arrays, labels)) == place
    dataset = pipeline.load_dataset((arrays, labels))
    from pipeline.data import decode

    for index, pixels in enumerate(arrays):
        assert (np.asarray(decode(dataset.read(index), dataset.limits)) == pixels).all()
    assert dataset.classes == ("a", "b") and dataset.name.startswith("arrays-")
    grey = pipeline.load_dataset((arrays[..., 0], np.arange(12) % 3 - 1))
    assert grey.classes == ("0", "1") and (grey.labels < 0).sum() == 4  # -1 is no label


def test_a_data_set_of_the_package_datasets(photos):
    datasets = pytest.importorskip("datasets")
    paths, labels = photos
    names = sorted(set(labels))
    kind = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [str(path) for path in paths], "label": [names.index(label) for label in labels]}
    try:
        given = datasets.Dataset.from_dict(columns, features=kind)
    except Exception as error:
        pytest.skip(f"the package datasets makes no data set here: {error}")
    found, own, _ = features(given)
    assert own == labels and len(found) == len(paths)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(features("photos")[0], axis=0))
    assert features(given)[2] == 0


@pytest.mark.parametrize("data, said", [
    (3, "cannot be int"), ({"a.jpg"}, "cannot be set"), ((["a.jpg"], ["x", "y"]), "1 images, 2 labels"),
    ((np.zeros((2, 4, 4, 3)), ["a", "b"]), "must be uint8.*round"), ((np.zeros((2, 4, 4, 3), np.uint8),), "come with"),
    ([("gone.jpg", "a")], "does not exist"), ([], "names no image"),
])
def test_what_is_no_data_is_refused_in_one_line(data, said, photos):
    with pytest.raises(DataError, match=said) as error:
        pipeline.extract(data, "pixels")
    assert "\n" not in str(error.value)


def test_a_frame_without_the_columns_says_what_to_rename(photos):
    pd = pytest.importorskip("pandas")
    with pytest.raises(DataError, match=r"no column label; it has 'path', 'kind'.*rename"):
        pipeline.extract(pd.DataFrame({"path": ["a.jpg"], "kind": ["x"]}), "pixels")
