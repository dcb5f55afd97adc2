"""Features of several backbones side by side: rows meet by content, and the run predicts as it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.core.errors import CacheError, RunError
from pipeline.heads import make_head, probabilities
from pipeline.runs.run import Run
from pipeline.store import CacheWriter, FeatureCache, JoinedCache, Spec, open_caches

CLASSES = ("ants", "bees")


def digest(image: str) -> np.ndarray:
    return np.random.default_rng(list(image.encode())).integers(0, 256, 16, dtype=np.uint8)


def made(folder: Path, name: str, images: str, columns: int = 3, *, labels=None, splits=None,
         classes=CLASSES) -> FeatureCache:  # fmt: skip
    """A cache whose rows belong to images of one letter; a letter twice is a copy."""
    spec = Spec({"architecture": name})
    path = folder / f"{name}-{spec.short}.h5"
    digests = np.stack([digest(image) for image in images])
    known = {image: np.random.default_rng([columns, *image.encode()]).random(columns, np.float32) for image in images}
    with CacheWriter.open(path, spec) as writer:
        for block, rows in enumerate(writer.plan(digests).blocks):
            writer.commit(block, np.stack([known[images[row]] for row in rows]), {}, set())
        writer.finish(
            paths=[f"{name}/{number}-{image}.png" for number, image in enumerate(images)],
            labels=np.array([ord(image) % 2 for image in images] if labels is None else labels),
            splits=np.array(["train"] * len(images) if splits is None else splits), classes=classes, skipped=[],
            meta={"dataset": "letters", "root": str(folder), "backbone": name, "label": name, "description": {}},
            seconds=1.5,
        ).close()  # fmt: skip
    return FeatureCache.open(path)


def test_rows_meet_by_content_whatever_their_names_and_order(tmp_path):
    one, two = made(tmp_path, "one", "abcdef", 3), made(tmp_path, "two", "fdbace", 5)
    with JoinedCache([one, two]) as joined:
        assert (joined.shape, len(joined), joined.notes) == ((6, 8), 6, ())
        expected = np.hstack([one.read_rows(), two.read_rows(np.array([3, 2, 4, 1, 5, 0]))])
        np.testing.assert_array_equal(joined.read_rows(), expected)
        np.testing.assert_array_equal(joined.read_rows(np.array([5, 0, 5])), expected[[5, 0, 5]])
        assert joined.paths == one.paths
        X, y = joined.split("train")
        np.testing.assert_array_equal(X, expected)
        np.testing.assert_array_equal(y, one.labels)
        streamed = list(joined.stream(4, split="train"))
        assert [len(rows) for rows, _ in streamed] == [4, 2]
        np.testing.assert_array_equal(np.concatenate([part for _, part in streamed]), expected)
        assert joined.meta["label"] == "one+two" and joined.meta["seconds"] == 3.0


def test_copies_meet_too_and_each_keeps_its_own_row(tmp_path):
    one, two = made(tmp_path, "one", "aabcb"), made(tmp_path, "two", "bcca", 4)
    with JoinedCache([one, two]) as joined:
        assert len(joined) == 5
        np.testing.assert_array_equal(joined.read_rows()[:, 3:], two.read_rows(np.array([3, 3, 0, 1, 0])))


def test_images_that_one_cache_lacks_are_left_out_and_counted(tmp_path):
    one, two, three = made(tmp_path, "one", "abcd"), made(tmp_path, "two", "bcdef"), made(tmp_path, "three", "dcb")
    with JoinedCache([one, two, three]) as joined:
        assert [path[-5] for path in joined.paths] == ["b", "c", "d"]
        assert joined.notes == (
            f"1 images of {one.path.name} are left out: another file has no features of them.",
            f"2 images of {two.path.name} are left out: another file has no features of them.",
        )


def test_three_in_another_order_are_other_features(tmp_path):
    caches = [made(tmp_path, name, "abc") for name in ("one", "two", "three")]
    with JoinedCache(caches) as joined, JoinedCache(caches[::-1]) as other:
        assert joined.spec != other.spec
        fields = [field for field, _, _ in joined.spec.differences(other.spec)]
        assert fields == ["joined.1.architecture", "joined.3.architecture"]


@pytest.mark.parametrize(("other", "said"), [
    ({"labels": [1, 1, 0]}, r"2 images have another label or split in .*, the first: 'one/1-b.png' is 'ants' in train "
                            r"and 'two/1-b.png', the same image, is 'bees' in train"),
    ({"splits": ["train", "train", "val"]}, r"1 images have .*'one/2-c.png' is 'bees' in train .* is 'bees' in val"),
    ({"classes": ("ants", "wasps")}, "other class names: 'bees' is a class of one alone"),
    ({"classes": ("bees", "ants")}, "other class names: they come in another order"),
])  # fmt: skip
def test_caches_that_contradict_each_other_are_refused_with_an_example(tmp_path, other, said):
    one = made(tmp_path, "one", "abc", labels=[1, 0, 1])
    with pytest.raises(CacheError, match=said):
        JoinedCache([one, made(tmp_path, "two", "abc", **{"labels": [1, 0, 1], **other})])


def test_a_copy_with_two_labels_agrees_with_either(tmp_path):
    one = made(tmp_path, "one", "aab", labels=[0, 1, 1], splits=["train", "val", "train"])
    two = made(tmp_path, "two", "baa", labels=[1, 1, 0], splits=["train", "val", "train"])
    with JoinedCache([one, two]) as joined:
        assert joined.labels.tolist() == [0, 1, 1]


def test_nothing_in_common_and_the_same_features_twice_are_refused(tmp_path):
    one = made(tmp_path, "one", "abc")
    with pytest.raises(CacheError, match="no image in common"):
        JoinedCache([one, made(tmp_path, "two", "def")])
    with pytest.raises(CacheError, match="hold the same features"):
        open_caches([one.path, one.path])


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Path:
    """Tiles of two photographs under two backbones, with a single run and a joined one."""
    folder = tmp_path_factory.mktemp("joined")
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(24):
            place = folder / "data" / ("val" if number % 4 == 0 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            top, left = 96 * (number // 6), 96 * (number % 6)
            Image.fromarray(photo[top : top + 96, left : left + 96]).save(place / f"{number:02}.png")
    paths = [pipeline.extract(str(folder / "data"), backbone, cache_dir=folder / "cache").path
             for backbone in ("efficientnet_lite0", "pixels")]  # fmt: skip
    for name, features in (("single", paths[:1]), ("both", paths)):
        pipeline.train_head("logistic", features=features, name=name, runs_dir=folder / "runs")
    return folder


@pytest.fixture
def here(studio, monkeypatch) -> Path:
    monkeypatch.chdir(studio)
    return studio


def caches(here: Path) -> list[Path]:
    """Return the files in the order in which they were joined: Lite0 first."""
    return sorted((here / "cache" / "data").glob("*.h5"))


def test_the_run_is_logistic_regression_on_the_columns_of_both(here):
    run = Run.open("both", here / "runs")
    rows, y = zip(*(FeatureCache.open(path).split("train") for path in caches(here)), strict=True)
    held, labels = zip(*(FeatureCache.open(path).split("val") for path in caches(here)), strict=True)
    head = make_head("logistic").fit(np.hstack(rows), y[0])
    expected = probabilities(head, np.hstack(held), 2)
    told = run.predictions("val")
    np.testing.assert_allclose([float(row["prob"]) for row in told], expected.max(axis=1), atol=2e-6)
    assert run.metrics["splits"]["val"]["n"] == len(labels[0]) == 12
    assert [part["columns"] for part in run.metrics["joined"]] == [1280, rows[1].shape[1]]
    assert run.metrics["features"] == "efficientnet_lite0+pixels"


def test_it_predicts_from_image_files_what_it_scored(here, capsys):
    assert main(["predict", "data/val", "--run", "both", "--json"]) == 0
    found = {Path(one["path"]).relative_to("data").as_posix(): one
             for one in json.loads(capsys.readouterr().out)["predictions"]}  # fmt: skip
    scored = Run.open("both", here / "runs").predictions("val")
    assert found.keys() == {row["filename"] for row in scored}
    for row in scored:
        assert found[row["filename"]]["label"] == row["prediction"]
        assert found[row["filename"]]["prob"] == pytest.approx(float(row["prob"]), abs=1e-5)


def test_an_unreadable_image_keeps_its_neighbours_in_their_places(here, tmp_path, capsys):
    sound = sorted((here / "data" / "val").rglob("*.png"))[:3]
    for number, content in enumerate([sound[0].read_bytes(), b"nothing", sound[2].read_bytes()]):
        (tmp_path / f"{number}.png").write_bytes(content)
    classifier = pipeline.ImageClassifier.load("both", here / "runs")
    first, broken, last = classifier.predict(sorted(tmp_path.iterdir()))
    assert broken.label is None and broken.reason
    for one, path in ((first, sound[0]), (last, sound[2])):
        assert one.prob == pytest.approx(classifier.predict([path])[0].prob, abs=1e-5)


def test_compare_pairs_it_with_the_run_on_one_of_them(here, capsys):
    assert main(["compare", "--baseline", "single"]) == 0
    out = capsys.readouterr().out
    assert "efficientnet_lite0+pixels" in out and "single" in out


def test_a_head_beside_a_config_that_names_other_features_says_which_field(here, tmp_path):
    run = Run.open("both", here / "runs")
    config = run.config()
    config["backbone"]["joined"] = config["backbone"]["joined"][::-1]
    for file in run.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config))
    with pytest.raises(RunError, match=r"other features .*joined\.1\.architecture: 'efficientnet_lite0', not 'pixels'"):
        pipeline.ImageClassifier.load(tmp_path)


def test_export_refuses_it(here, capsys):
    assert main(["export", "--run", "both"]) == 2
    error = capsys.readouterr().err
    assert "the features of 2 backbones (efficientnet_lite0+pixels)" in error and error.count("\n") == 1


def test_its_caches_are_in_use(here, capsys):
    assert main(["cache", "rm", "--unused", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []


def test_all_commands_on_features_take_several(here, capsys, tmp_path):
    files = [str(path) for path in caches(here)]
    assert main(["train-head", "--features", *files, "--head", "lda,ridge", "--calibrate", "--runs-dir",
                 str(tmp_path / "runs")]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "features efficientnet_lite0+pixels" in out and all(
        f"efficientnet_lite0_pixels-{head} " in out for head in ("lda", "ridge"))
    assert main(["learning-curve", "--features", *files, "--shots", "2,4", "--repeats", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 2
    assert main(["audit", "--features", *files, "--sheets", str(tmp_path / "sheets"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    columns = Run.open("both", here / "runs").metrics["joined"]
    assert found["features"] == sum(part["columns"] for part in columns)


def test_its_report_finds_both_caches_and_says_how_to_make_it_again(here, capsys):
    assert main(["report", "--run", "both", "--out", "both.html"]) == 0
    page = Path("both.html").read_text()
    names = [str(path.relative_to(here)) for path in caches(here)]
    assert f"--features {' '.join(names)}" in page


def test_of_several_views_the_plain_one_is_taken_and_a_note_says_so(here, capsys, tmp_path):
    done = pipeline.extract("data", "pixels", views=2, cache_dir=tmp_path / "cache")
    first = next(path for path in caches(here) if "efficientnet" in path.name)
    assert main(["train-head", "--features", str(first), str(done.path), "--runs-dir", str(tmp_path / "runs"),
                 "--head", "lda"]) == 0  # fmt: skip
    assert f"note: Of the 2 views in {done.path.name} the plain one is taken." in capsys.readouterr().err


def test_a_note_tells_of_images_left_out(here, capsys, tmp_path):
    shutil.copytree(here / "data", tmp_path / "data")
    (tmp_path / "data" / "train" / "china" / "01.png").unlink()
    done = pipeline.extract(str(tmp_path / "data"), "pixels", cache_dir=tmp_path / "cache")
    assert main(["train-head", "--features", str(caches(here)[0]), str(done.path), "--runs-dir",
                 str(tmp_path / "runs"), "--head", "lda"]) == 0  # fmt: skip
    assert f"note: 1 images of {caches(here)[0].name} are left out" in capsys.readouterr().err
