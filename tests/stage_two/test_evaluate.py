"""Runs scored on labelled images that they were not made from."""

# ruff: noqa: F811  (pytest fixtures are imported and named again as arguments)
from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from projects import Project, project, tiles  # noqa: F401

import pipeline
from pipeline import FeatureCache, ImageClassifier, Run
from pipeline.stage_two.evaluate import evaluate_runs

PIXELS = ("--backbone", "pixels")


@pytest.fixture
def trained(tiles, project) -> Project:
    """A project with two runs on the tiles."""
    project.run("extract", "--data", tiles, *PIXELS)
    for head in ("ridge", "knn"):
        project.run("train-head", "--data", tiles, *PIXELS, "--head", head)
    return project


def test_on_a_runs_own_images_it_says_what_the_run_says(tiles, trained):
    (found,) = trained.json("evaluate", "tiles-pixels-ridge", "--data", tiles)["evaluations"]
    run = Run.open("tiles-pixels-ridge")
    assert found["split"] == "val" and found["scores"] == run.metrics["splits"]["val"]
    with Path(found["path"]).open(newline="") as file:
        assert list(csv.DictReader(file)) == run.predictions("val")
    _, _, err = trained.run("train-head", "--data", tiles, *PIXELS, "--head", "ridge")
    assert "and is updated. What it scored on other images is gone with it." in err
    (found,) = trained.json("evaluate", "tiles-pixels-ridge", "--data", tiles)["evaluations"]
    kept = json.loads(Path(found["path"]).with_suffix(".json").read_text())
    assert kept["scores"] == found["scores"] and found["unknown"] == {} and found["absent"] == []


def test_runs_are_compared_on_the_same_images(tiles, trained):
    names = ["tiles-pixels-ridge", "tiles-pixels-knn"]
    code, out, err = trained.run("evaluate", *names, "--data", tiles, "--split", "train")
    assert code == 0, err
    assert "against tiles-pixels-" in out and "the best, on the same images" in out
    first, second = evaluate_runs(names, str(tiles), split="train")
    worse, best = sorted((first, second), key=lambda found: found.scores["accuracy"])
    assert best.versus is None
    assert worse.versus["difference"] == pytest.approx(worse.scores["accuracy"] - best.scores["accuracy"])


def test_classes_that_one_side_lacks_and_images_that_cannot_be_read_are_named_and_left_out(tiles, trained):
    folder = trained.folder / "found"
    shutil.copytree(tiles / "val" / "china", folder / "china")
    shutil.copytree(tiles / "val" / "flower", folder / "tulip")
    (folder / "china" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (found,) = trained.json("evaluate", "tiles-pixels-ridge", "--data", folder)["evaluations"]
    assert (found["split"], found["unknown"], found["absent"]) == ("all", {"tulip": 4}, ["flower"])
    assert list(found["failures"]) == ["china/broken.png"] and found["scores"]["n"] == 4
    _, out, err = trained.run("evaluate", "tiles-pixels-ridge", "--data", folder)
    assert "whose images are left out: tulip (4)" in err and "no image of these classes" in err
    assert "china/broken.png: " in err and "found, all" in out
    shutil.rmtree(folder / "china")
    shutil.copytree(tiles / "val" / "china", folder / "pagoda")
    error = trained.error("evaluate", "tiles-pixels-ridge", "--data", folder)
    assert "is of a class that tiles-pixels-ridge knows" in error


def test_features_are_computed_once_and_the_cache_stays_as_it_was(tiles, trained, monkeypatch):
    flat = trained.folder / "flat"
    for name in ("china", "flower"):
        shutil.copytree(tiles / "train" / name, flat / name)
    path = Path(trained.json("extract", "--data", flat, *PIXELS, "--val-fraction", "0.5")["path"])
    with FeatureCache.open(path) as cache:
        before = cache.splits.tolist()
    content = path.read_bytes()
    monkeypatch.setattr("pipeline.stage_one.extraction.computer_of", lambda *words: pytest.fail("computed again"))
    (found,) = trained.json("evaluate", "tiles-pixels-knn", "--data", flat)["evaluations"]
    assert found["split"] == "all" and found["scores"]["n"] == len(before) and set(before) == {"train", "val"}
    assert path.read_bytes() == content


def test_the_cache_that_it_makes_is_called_as_extract_calls_it(tiles, project):
    project.run("extract", tiles)
    project.run("train-head", tiles, "--head", "nearest-centroid")
    shutil.copytree(tiles / "val", project.folder / "others")
    assert project.json("evaluate", "tiles-efficientnet_lite0-nearest-centroid", "--data", project.folder / "others")
    (run,) = project.json("train-head", project.folder / "others", "--head", "nearest-centroid")["runs"]
    assert run["name"] == "others-efficientnet_lite0-nearest-centroid"


def test_a_split_that_is_not_there_is_an_error_with_those_that_are(tiles, trained):
    error = trained.error("evaluate", "tiles-pixels-ridge", "--data", tiles, "--split", "vall")
    assert "Unknown split" in error and "Did you mean 'val'" in error


def test_a_classifier_scores_images_that_are_at_hand(tiles, trained):
    run = Run.open("tiles-pixels-ridge")
    classifier = ImageClassifier.load(run)
    paths = sorted((tiles / "val").rglob("*.png"))
    found = classifier.evaluate(paths, [path.parent.name for path in paths])
    assert found["accuracy"] == run.metrics["splits"]["val"]["accuracy"] and found["unknown"] == {}
    assert found["log_loss"] == pytest.approx(run.metrics["splits"]["val"]["log_loss"])
    found = classifier.evaluate([paths[0], b"no image", paths[-1]], ["china", "china", "tulip"])
    assert (found["n"], found["unknown"], list(found["unreadable"])) == (1, {"tulip": 1}, ["1"])


def test_a_page_tells_how_a_run_does_on_other_images(tiles, trained):
    folder = trained.folder / "others"
    shutil.copytree(tiles / "val", folder)
    code, _, err = trained.run("evaluate", "tiles-pixels-ridge", "--data", folder, "--report")
    assert code == 0, err
    page = (trained.folder / "runs/tiles-pixels-ridge/evaluations/others-all.html").read_text()
    (found,) = evaluate_runs(["tiles-pixels-ridge"], str(folder))
    assert "tiles-pixels-ridge on others" in page and f"{100 * found.scores['accuracy']:.1f} %" in page
    assert pipeline.report(found) == found.path.with_suffix(".html")
    assert not (trained.folder / "runs/tiles-pixels-ridge/report.html").exists()
