"""Cached views: drawn from an image's content alone, kept beside the plain row, learned from and averaged over."""

# ruff: noqa: F811  (pytest fixtures are imported and named again as arguments)
from __future__ import annotations

import csv
import html
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from projects import project, tiles  # noqa: F401
from sklearn.datasets import load_sample_images

import pipeline
from pipeline import FeatureCache, ImageClassifier, PipelineError, Views
from pipeline.backbones import resolve
from pipeline.data.augmentation import AUGMENTATIONS
from pipeline.heads import HEADS, make_head, probabilities
from pipeline.heads.folds import stratified_folds
from pipeline.heads.ridge import RidgeProblem
from pipeline.heads.sweep import sweep_head
from pipeline.heads.training import Recipe, Rows, _batches
from pipeline.runs.prediction_table import predict_to_file
from pipeline.stage_one.caches import verify
from pipeline.stage_one.extraction import Extraction

QUICK = {
    "linear": {"epochs": 5, "lr": 0.05}, "mlp": {"epochs": 30, "hidden": 8, "batch_size": 16, "lr": 0.01},
    "random-forest": {"n_estimators": 10}, "hist-gradient-boosting": {"max_iter": 10},
}  # fmt: skip


def rows_of(done: Extraction) -> dict[str, bytes]:
    """Return every image's views, as bytes by path."""
    with done.open() as cache:
        return {path: row.tobytes() for path, row in zip(cache.paths, cache.read_rows(), strict=True)}


def pixels(data: Path, folder: Path, views: int | Views | None = 3, **options) -> Extraction:
    """Cache raw pixels, whose rows have the same bits however they are batched."""
    return pipeline.extract(str(data), "pixels", views=views, cache_dir=folder, device="cpu", engine="torch", **options)


def viewed(classes=3, each=12, views=4, features=6, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, V, D) views around N images around one centre a class."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    images = 2 * rng.normal(size=(classes, features))[y] + rng.normal(size=(len(y), features))
    return (images[:, None] + rng.normal(size=(len(y), views, features)) * 0.7).astype(np.float32), y


# which views there are


def test_rows_do_not_depend_on_workers_batches_or_the_other_images(tiles, tmp_path):
    usual = rows_of(pixels(tiles, tmp_path / "a"))
    for number, options in enumerate(({"workers": 0}, {"workers": 5, "batch_size": 1}, {"batch_size": 7})):
        np.random.seed(number)
        assert rows_of(pixels(tiles, tmp_path / str(number), **options)) == usual
    other = tmp_path / "moved" / "tiles"
    for number, path in enumerate(sorted(usual)[::3]):
        (other / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(tiles / path, other / f"class{number % 2}" / f"{number}.png")
    moved = rows_of(pixels(other, tmp_path / "b"))
    assert sorted(moved.values()) == sorted(usual[path] for path in sorted(usual)[::3])


def test_renaming_and_re_splitting_compute_nothing(tiles, tmp_path):
    copy = tmp_path / "tiles"
    shutil.copytree(tiles, copy)
    before = rows_of(pixels(copy, tmp_path / "cache"))
    name = sorted(path for path in before if path.startswith("train/"))[0]
    (copy / name).rename(copy / "val" / Path(name).parent.name / "renamed.png")
    done = pixels(copy, tmp_path / "cache")
    assert done.computed == 0
    assert sorted(rows_of(done).values()) == sorted(before.values())


def test_a_view_is_the_same_however_many_others_there_are(tiles, tmp_path):
    with pixels(tiles, tmp_path, 5).open() as five, pixels(tiles, tmp_path, 2).open() as two:
        np.testing.assert_array_equal(five.read_rows()[:, :2], two.read_rows())


def test_view_0_is_the_plain_caches_row_and_further_views_differ(tiles, tmp_path):
    plain, one, several = (pixels(tiles, tmp_path, views) for views in (None, 1, 3))
    assert plain.path == one.path and one.computed == 0
    with plain.open() as cache, several.open() as views:
        assert (cache.shape, views.shape) == (cache.shape, (len(cache), 3, cache.shape[1]))
        np.testing.assert_array_equal(views.read_rows(view=0), cache.read_rows())
        rows = views.read_rows()
        assert all((rows[:, a] != rows[:, b]).any(axis=1).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_network_sees_view_0_as_it_sees_plain_images(tiles, tmp_path):
    plain, several = (pipeline.extract(str(tiles), cache_dir=tmp_path, views=views, device="cpu") for views in (1, 3))
    with plain.open() as cache, several.open() as views:
        np.testing.assert_allclose(views.read_rows(view=0), cache.read_rows(), rtol=1e-3, atol=1e-5)
    report, = verify([several.path], recompute=4)
    assert not report.problems and report.recomputed == 4


def test_seed_augmentation_and_number_are_another_spec(tiles, tmp_path):
    backbone = resolve("pixels")
    asked = {Views(), Views(2), Views(3, seed=1), Views(2, "flip"),
             *(Views(3, name) for name in AUGMENTATIONS if name not in ("none", "flip"))}
    assert len({replace(backbone, views=views).spec for views in asked}) == 3 + len(AUGMENTATIONS) - 1
    assert "views" not in backbone.spec.fields
    first, again = (rows_of(pixels(tiles, tmp_path, views)) for views in (3, Views(3, seed=1)))
    assert all(first[path] != again[path] for path in first)


@pytest.mark.parametrize("augmentation", [name for name in AUGMENTATIONS if name != "none"])
def test_every_augmentation_draws_the_same_views_again(augmentation, tiles):
    backbone = replace(resolve("pixels"), views=Views(2 if augmentation == "flip" else 4, augmentation))
    content = next(tiles.rglob("*.png")).read_bytes()
    np.testing.assert_array_equal(backbone.pixels(content), backbone.pixels(content))


def test_a_killed_extraction_ends_in_the_same_bits(tmp_path):
    many = tmp_path / "many"
    photo = load_sample_images().images[0]
    from PIL import Image

    for number in range(200):
        (many / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        tile = photo[number : number + 200, 2 * number : 2 * number + 200]
        Image.fromarray(tile).save(many / f"class{number % 2}" / f"{number}.png")
    command = [sys.executable, "-m", "pipeline", "extract", "--data", str(many), "--backbone", "pixels", "--views", "6",
               "--json", "--cache-dir"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("many/*.partial/*.shard")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    found = []
    for folder in ("killed", "whole"):
        done = subprocess.run([*command, str(tmp_path / folder)], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    assert 0 < found[0]["reused"] < 200 and found[1]["reused"] == 0
    with FeatureCache.open(found[0]["path"]) as killed, FeatureCache.open(found[1]["path"]) as whole:
        assert killed.meta["sha256"]["features"] == whole.meta["sha256"]["features"]


@pytest.mark.parametrize(("words", "said"), [
    (("--views", 0), "number of views is 0"), (("--views", -1), "number of views is -1"), (("--views", "x"), "'x'"),
    (("--views", 2, "--augmentation", "none"), "would all be the plain one"),
    (("--views", 2, "--augmentation", "tutorail"), "Did you mean 'tutorial'"),
    (("--augmentation", "cifar"), "give --views 2 or more"), (("--view-seed", 3), "give --views 2 or more"),
    (("--views", 2, "--view-seed", -1), "seed of the views is -1"),
])  # fmt: skip
def test_views_that_cannot_be_are_one_line(words, said, tiles, project):
    for command in ("extract", "train-head"):
        assert said in project.error(command, "--data", tiles, *words)


# learning from them


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_from_views(name):
    X, y = viewed()
    head = make_head(name, **QUICK.get(name, {})).fit(X, y, X[:, 0], y)
    assert head.views_ == 4
    assert (head.predict(X[:, 0]) == y).mean() > 0.8


@pytest.mark.parametrize("name", ["logistic", "linear-svm", "ridge", "nearest-centroid"])
def test_a_setting_means_the_same_however_many_views_there_are(name):
    X, y = viewed(views=1)
    one, three = make_head(name).fit(X[:, 0], y), make_head(name).fit(np.repeat(X, 3, axis=1), y)
    np.testing.assert_allclose(three.coef_, one.coef_, rtol=2e-3, atol=1e-4)
    if name != "nearest-centroid":
        assert three.temperature_ == pytest.approx(one.temperature_, rel=0.02)


def test_an_epoch_takes_one_view_of_each_image_and_another_one_later():
    import torch

    X, y = viewed(views=3)
    rows = Rows.of(X.reshape(-1, X.shape[2]), np.repeat(y, 3), "cpu", 3)
    recipe = Recipe("sgd", None, 0.9, 0.0, 0.0, "step", 7, 0.1, 5, 8, False, 0, "cpu")
    generator, epochs = torch.Generator().manual_seed(0), []
    for _ in range(30):
        found = torch.cat([part for part, _ in _batches(rows, recipe, generator)])
        places = [int((row == rows.X).all(dim=1).nonzero()[0, 0]) for row in found]
        assert sorted(place // 3 for place in places) == list(range(len(y)))
        epochs.append(tuple(sorted(places)))
    assert len(set(epochs)) == 30
    seen = {place for epoch in epochs for place in epoch}
    assert len(seen) == 3 * len(y)


def test_folds_never_part_the_views_of_an_image():
    codes = np.repeat(viewed()[1], 4)
    for train, test in stratified_folds(codes, views=4):
        assert not set(train // 4) & set(test // 4)
        assert len(train) + len(test) == len(codes) and set(codes[train]) == {0, 1, 2}


@pytest.mark.parametrize("features", [6, 90], ids=["more rows than features", "fewer"])
def test_ridge_leaves_an_image_out_with_all_of_its_views(features):
    X, y = viewed(each=5, features=features)
    Z, codes = X.reshape(-1, X.shape[2]).astype(np.float64), np.repeat(y, 4)
    weights, alphas = np.random.default_rng(0).uniform(0.5, 2, len(codes)), np.array([3.0, 0.1])
    left = np.concatenate(list(RidgeProblem(Z, codes, weights, 3).left_out_images(alphas, 4)))
    for image in range(len(y)):
        others = np.arange(len(codes)) // 4 != image
        without = RidgeProblem(Z[others], codes[others], weights[others], 3)
        for place, alpha in enumerate(alphas):
            coef, intercept = without.solve(alpha)
            np.testing.assert_allclose(left[~others, place], Z[~others] @ coef.T + intercept, rtol=1e-6, atol=1e-8)


def test_a_sweep_scores_the_plain_view_of_images_that_it_did_not_see(tmp_path):
    # noise that an image's views share: whoever sees one of them knows the others
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(60, 1, 40)), 4, axis=1) + rng.normal(size=(60, 4, 40)) * 1e-3
    y = rng.integers(0, 2, 60)
    result = sweep_head("knn", X.astype(np.float32), y, grid={"k": [1]}, n_jobs=1)
    assert result.rows[0]["accuracy"] < 0.75
    by_hand = sweep_head("knn", X[:, :1].astype(np.float32), y, grid={"k": [1]}, n_jobs=1)
    assert abs(result.rows[0]["accuracy"] - by_hand.rows[0]["accuracy"]) < 0.1


def test_settings_chosen_on_val_look_at_its_plain_view():
    X, y = viewed()
    X_val, y_val = viewed(seed=1)
    X_val[:, 1:] = 1e3  # whatever the other views hold
    first = sweep_head("logistic", X, y, X_val=X_val, y_val=y_val, n_jobs=1)
    second = sweep_head("logistic", X, y, X_val=X_val[:, :1].repeat(4, axis=1), y_val=y_val, n_jobs=1)
    assert [row["accuracy"] for row in first.rows] == [row["accuracy"] for row in second.rows]


# predicting with them


@pytest.mark.parametrize("head", ["logistic", "linear"])
def test_tta_is_the_mean_of_the_views_probabilities(head, tiles, project):
    data = ("--data", tiles)
    assert project.run("extract", *data, "--views", 3)[0] == 0
    plain = project.json("train-head", *data, "--views", 3, "--head", head, "--name", "plain")["runs"][0]
    averaged = project.json("train-head", *data, "--views", 3, "--head", head, "--name", "tta", "--tta")["runs"][0]
    assert (plain["tta"], averaged["tta"]) == (False, True)
    classifier = ImageClassifier.load(project.folder / "runs" / "tta")
    images = sorted((tiles / "val").rglob("*.png"))
    with FeatureCache.open(next(Path("cache/tiles").glob("*.h5"))) as cache:
        rows = [cache.paths.index(str(image.relative_to(tiles))) for image in images]
        views = [probabilities(classifier.head, cache.read_rows(rows, view=view), 2) for view in range(3)]
    for tta, expected in ((False, views[0]), (True, np.mean(views, axis=0))):
        found = [list(each.probabilities.values()) for each in classifier.predict(images, tta=tta)]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        words = ("predict", tiles / "val", "--run", "tta", *(("--tta",) if tta else ()))
        assert ("--tta averages them here too" in project.run(*words, "--json")[2]) == (not tta)
        probs = {each["path"]: each["prob"] for each in project.json(*words)["predictions"]}
        np.testing.assert_allclose([probs[str(image)] for image in images], np.max(expected, axis=1), atol=1e-4)
        with (Path("runs") / ("tta" if tta else "plain") / "predictions.csv").open(newline="") as file:
            saved = {row["filename"]: float(row["prob"]) for row in csv.DictReader(file)}
        np.testing.assert_allclose([saved[str(image.relative_to(tiles))] for image in images],
                                   np.max(expected, axis=1), atol=1e-4)  # fmt: skip


def test_a_run_tells_what_its_views_gained(tiles, project):
    assert project.run("extract", "--data", tiles, "--views", 2)[0] == 0
    code, out, _ = project.run("train-head", "--data", tiles, "--views", 2)
    run = pipeline.Run.open("tiles-efficientnet_lite0_2_views-logistic")
    gained = run.metrics["views"]
    assert code == 0 and gained["sentence"] in out
    assert gained["views"]["accuracy"] == run.metrics["splits"]["val"]["accuracy"]
    for way in ("views", "tta"):
        assert gained[way]["difference"] == pytest.approx(gained[way]["accuracy"] - gained["plain"]["accuracy"])
        assert gained[way]["difference_ci95"][0] <= gained[way]["difference"] <= gained[way]["difference_ci95"][1]


def test_views_that_are_not_there_are_asked_for_in_words_that_work(tiles, project):
    data = ("--data", tiles, "--backbone", "pixels")
    assert project.run("extract", *data, "--views", 3, "--augmentation", "cifar")[0] == 0
    said = project.error("train-head", *data)
    assert "--views 3 --augmentation cifar" in said and "Run `pipeline extract" in said
    assert "--views 3 --augmentation cifar" in project.error("train-head", *data, "--views", 2)
    assert project.run("train-head", *data, "--views", 3, "--augmentation", "cifar")[0] == 0
    elsewhere = (*data, "--cache-dir", "elsewhere")
    assert project.run("extract", *elsewhere)[0] == 0
    assert "without --views they are used" in project.error("train-head", *elsewhere, "--views", 5, "--view-seed", 1)
    several, = Path("cache/tiles").glob("*.h5")
    plain, = Path("elsewhere/tiles").glob("*.h5")
    assert "holds 3 views of each image, not 2" in project.error("train-head", "--features", several, "--views", 2)
    assert "nothing to average over" in project.error("train-head", "--features", plain, "--tta")
    assert project.run("train-head", "--features", plain, "--name", "plain")[0] == 0
    assert "no views to average over" in project.error("predict", tiles / "val", "--run", "plain", "--tta")


def test_an_interrupted_table_of_plain_predictions_is_not_taken_for_one_of_averages(tiles, project):
    data = ("--data", tiles, "--backbone", "pixels", "--views", 2)
    assert project.run("extract", *data)[0] == 0 and project.run("train-head", *data, "--name", "run")[0] == 0
    images, run = sorted((tiles / "val").rglob("*.png")), pipeline.Run.open("run")
    classifier = ImageClassifier.load(run)

    class Interrupted:
        classes, abstain_below = classifier.classes, 0.0

        def stream(self, images, *, tta):
            yield from list(classifier.stream(images, tta=tta))[:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Interrupted(), run, images, Path("out.csv"))
    averaged = predict_to_file(classifier, run, images, Path("out.csv"), tta=True)
    assert (averaged.images, averaged.resumed) == (len(images), 0)
    assert predict_to_file(classifier, run, images, Path("out.csv")).resumed == 3


def test_views_from_python(tiles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pipeline.extract(str(tiles), "pixels", views=2)
    run = pipeline.train_head("logistic", str(tiles), "pixels", views=2, tta=True)
    assert run.metrics["tta"] and run.name.endswith("-tta") and run.metrics["spec_sha256"] == done.spec_sha256
    for views in (0, -1, "x", True, 2.0):
        with pytest.raises(PipelineError, match="number of views"):
            pipeline.extract(str(tiles), "pixels", views=views)


def test_the_report_tells_what_views_gained_and_how_to_make_the_run_again(tiles, project):
    data = ("--data", tiles, "--backbone", "pixels", "--views", 3, "--augmentation", "cifar")
    assert project.run("extract", *data)[0] == 0
    run = project.json("train-head", *data, "--tta", "--name", "run")["runs"][0]
    assert project.run("report", "--run", "run")[0] == 0
    page = html.unescape(Path("runs/run/report.html").read_text())
    assert run["views"]["sentence"] in page and "averages over the views" in page
    command = next(line for line in page.splitlines() if "pipeline train-head" in line)
    assert "--views 3 --augmentation cifar" in command and "--tta" in command
