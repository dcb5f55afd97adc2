"""A head that knows how sure it is: calibrated by the command, saved, and told with each prediction."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.core.errors import PipelineError, RunError
from pipeline.runs.prediction_table import predict_to_file
from pipeline.runs.run import Run
from pipeline.stage_two.calibrate import Calibration
from pipeline.stage_two.fit import Sweep
from pipeline.store import FeatureCache

SIDE = 40


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Path:
    """Tiles of two photographs in train, val and test, as raw pixels, with a calibrated and a plain run."""
    folder = tmp_path_factory.mktemp("certainty")
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(96):
            split = {0: "val", 1: "test"}.get(number % 4, "train")
            top, left = SIDE * (number // 12), SIDE * (number % 12)
            place = folder / "data" / split / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(place / f"{number:02}.png")
    noise = folder / "noise"
    noise.mkdir()
    for number in range(4):
        blocks = np.random.default_rng(number).integers(0, 2, (5, 5, 3), np.uint8) * 255
        Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(noise / f"{number}.png")
    pipeline.extract(str(folder / "data"), "pixels", cache_dir=folder / "cache")
    train(folder, "plain", None)
    train(folder, "sure", Calibration(coverage=0.8))
    return folder


def train(folder: Path, name: str, calibration: Calibration | None, head: str = "gaussian-nb", **more) -> Run:
    return pipeline.train_head(head, str(folder / "data"), "pixels", name=name, cache_dir=folder / "cache",
                               calibration=calibration, runs_dir=folder / "runs", **more)  # fmt: skip


@pytest.fixture
def here(studio, monkeypatch) -> Path:
    monkeypatch.chdir(studio)
    return studio


def predicted(capsys, *words: str) -> dict:
    assert main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_calibrating_makes_naive_bayes_lose_less_on_images_that_took_no_part(here):
    plain, sure = (Run.open(name, here / "runs").metrics for name in ("plain", "sure"))
    assert "calibration" not in plain
    found = sure["calibration"]
    assert (found["selection"], found["n"], found["coverage"], found["same_rows"]) == ("cv", 96, 0.8, False)
    assert set(found["held_out"]) == {"val", "test"}
    for split, figures in found["held_out"].items():
        for name in ("log_loss", "brier", "ece"):
            assert figures["before"][name] == pytest.approx(plain["splits"][split][name], abs=1e-6)
            assert figures["after"][name] == pytest.approx(sure["splits"][split][name])
        assert figures["after"]["log_loss"] < 0.7 * figures["before"]["log_loss"]
        assert figures["after"]["ece"] < figures["before"]["ece"]
        assert figures["set_coverage"] > 0.65 and 1 <= figures["set_size"] <= 2
        assert sure["splits"][split]["accuracy"] == plain["splits"][split]["accuracy"], "labels stay"
        assert sure["splits"][split]["confusion"] == plain["splits"][split]["confusion"]


def test_the_test_split_takes_no_part(here, tmp_path):
    shutil.copytree(here / "data", tmp_path / "data")
    shutil.copytree(here / "cache", tmp_path / "cache")
    for name, other in (("china", "flower"), ("flower", "china")):
        (tmp_path / "data" / "test" / name).rename(tmp_path / "data" / "test" / f"{other}-")
    for name in ("china", "flower"):
        (tmp_path / "data" / "test" / f"{name}-").rename(tmp_path / "data" / "test" / name)
    assert pipeline.extract(str(tmp_path / "data"), "pixels", cache_dir=tmp_path / "cache").computed == 0
    sure, other = Run.open("sure", here / "runs"), train(tmp_path, "sure", Calibration(coverage=0.8))
    assert other.metrics["splits"]["test"]["accuracy"] < 0.5
    for key in ("temperature", "threshold", "before", "after"):
        assert other.metrics["calibration"][key] == sure.metrics["calibration"][key]


def test_on_val_it_says_so_and_whether_the_same_images_chose_the_settings(here, tmp_path):
    for folder, options in (("a", {}), ("b", {"sweep": Sweep({"shrinkage": [0.1, 0.9]}, on="val")})):
        shutil.copytree(here / "cache", tmp_path / folder / "cache")
        (tmp_path / folder / "data").symlink_to(here / "data")
        run = train(tmp_path / folder, "val", Calibration("val"), head="lda", **options)
        assert (run.metrics["calibration"]["selection"], run.metrics["calibration"]["n"]) == ("val", 48)
        assert run.metrics["calibration"]["same_rows"] == (folder == "b")


def test_predict_tells_what_it_does_not_know(here, capsys):
    found = predicted(capsys, "data/test", "--run", "sure", "--abstain-below", "0.8")["predictions"]
    assert len(found) == 48
    for one in found:
        assert one["label"] in ("china", "flower") and one["abstained"] == (one["prob"] < 0.8)
        assert one["possible"][0] == one["label"] and 1 <= len(one["possible"]) <= 2
    assert 0 < sum(one["abstained"] for one in found) < 48
    assert sum(one["unfamiliar"] for one in found) <= 5
    strange = predicted(capsys, "noise", "--run", "sure")["predictions"]
    assert all(one["unfamiliar"] for one in strange) and not any(one["abstained"] for one in strange)


def test_raw_scores_are_what_probabilities_are_made_of(here, capsys):
    for one in predicted(capsys, "data/test", "--run", "plain", "--scores")["predictions"]:
        known = {name: np.exp(score - max(one["scores"].values())) for name, score in one["scores"].items()}
        assert one["prob"] == pytest.approx(known[one["label"]] / sum(known.values()))
    assert "scores" not in predicted(capsys, "data/test", "--run", "plain")["predictions"][0]
    for other, why in (("--csv=out.csv", "tables hold probabilities"), ("--tta", "no views")):
        assert main(["predict", "data/test", "--run", "plain", "--scores", other]) == 2
        assert why in capsys.readouterr().err


def test_how_often_it_abstains_is_what_its_metrics_foretold(here, capsys):
    found = predicted(capsys, "data/test", "--run", "sure", "--abstain-below", "0.9")["predictions"]
    (told,) = [one for one in Run.open("sure", here / "runs").metrics["splits"]["test"]["abstaining"]
               if one["below"] == 0.9]  # fmt: skip
    assert told["answered"] == pytest.approx(1 - sum(one["abstained"] for one in found) / len(found))
    right = [Path(one["path"]).parent.name == one["label"] for one in found if not one["abstained"]]
    assert told["accuracy"] == pytest.approx(np.mean(right))


def test_in_words_and_in_a_file(here, capsys):
    assert main(["predict", "data/test", "noise", "--run", "sure", "--abstain-below", "0.8"]) == 0
    out, notes = capsys.readouterr()
    assert "don't know (" in out and "unlike training" in out
    assert "images abstained from: no label has 0.8" in notes and "unlike anything in training" in notes
    assert "not calibrated" not in notes
    words = ["predict", "data/test", "noise", "--run", "sure", "--abstain-below", "0.8"]
    told = predicted(capsys, *words[1:])["predictions"]
    assert main([*words, "--csv", "out.csv"]) == 0
    assert notes == capsys.readouterr().err
    with Path("out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, one in zip(rows, told, strict=True):
        assert row["abstained"] == str(one["abstained"]).lower() and row["unfamiliar"] == str(one["unfamiliar"]).lower()
        assert row["possible"].split("|") == one["possible"] and row["label"] == one["label"]


def test_an_interrupted_file_counts_the_doubts_of_all_its_rows_and_another_threshold_is_another_file(here):
    def classifier(below: float) -> pipeline.ImageClassifier:
        return pipeline.ImageClassifier.load("sure", here / "runs", abstain_below=below)

    run, images = Run.open("sure", here / "runs"), [*sorted((here / "data" / "test").rglob("*.png")),
                                                    *sorted((here / "noise").iterdir())]  # fmt: skip
    whole = predict_to_file(classifier(0.8), run, images, here / "doubts.csv")
    assert whole.abstained > 0 and whole.unfamiliar >= 4

    class Stopping:
        classes, abstain_below = run.metrics["classes"], 0.8

        def stream(self, images, tta=False):
            yield from list(classifier(0.8).stream(images))[:40]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Stopping(), run, images, here / "doubts.csv")
    assert predict_to_file(classifier(0.7), run, images, here / "doubts.csv").resumed == 0
    again = predict_to_file(classifier(0.8), run, images, here / "doubts.csv")
    assert again.resumed == 40
    assert (again.abstained, again.unfamiliar) == (whole.abstained, whole.unfamiliar)


def test_a_calibrated_linear_head_tells_its_doubts_without_scikit_learn(here):
    train(here, "linear", Calibration(), head="logistic")
    code = ("import sys, numpy as np; from pipeline.heads import load_head, prediction_sets; "
            "head, _ = load_head('runs/linear'); X = np.zeros((1, head.n_features_in_), np.float32); "
            "assert head.familiarity_.unlike(X).shape == (1,); "
            "assert prediction_sets(head.predict_proba(X), head.set_threshold_).any(); "
            "loaded = {'sklearn', 'scipy', 'torch'} & set(sys.modules); assert not loaded, loaded")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=here)


def test_a_run_that_is_not_calibrated_abstains_by_its_raw_probabilities_and_says_so(here, capsys):
    assert main(["predict", "data/test", "--run", "plain", "--abstain-below", "0.8", "--json"]) == 0
    out, notes = capsys.readouterr()
    for one in json.loads(out)["predictions"]:
        assert (one["unfamiliar"], one["possible"]) == (None, None)
        assert one["abstained"] == (one["prob"] < 0.8)
    assert notes.count("is not calibrated") == 1 and "train-head --calibrate" in notes


def test_an_unreadable_image_has_no_doubts_either(here, capsys, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    shutil.copy(here / "noise" / "0.png", tmp_path / "a.png")
    assert main(["predict", str(tmp_path), "--run", "sure", "--abstain-below", "1", "--csv", "broken.csv"]) == 0
    with Path("broken.csv").open(newline="") as file:
        sound, broken = csv.DictReader(file)
    assert (broken["abstained"], broken["unfamiliar"], broken["possible"]) == ("", "", "")
    assert sound["unfamiliar"] == "true" and broken["reason"]


@pytest.mark.parametrize("words", [["--abstain-below", "80"], ["--abstain-below", "-0.1"]])
def test_abstaining_takes_a_probability(here, capsys, words):
    assert main(["predict", "noise", "--run", "sure", *words]) == 2
    assert "a probability from 0 to 1, not" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["--calibrate", "test"], "Unknown split to calibrate on 'test'"),
    (["--calibrate", "--coverage", "90"], "above 0 and below 1, not 90"),
    (["--calibrate", "--folds", "1"], "needs two folds"),
])  # fmt: skip
def test_calibrating_on_nonsense_is_refused_in_one_line(here, capsys, words, said):
    assert main(["train-head", "--data", "data", "--backbone", "pixels", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_config_and_report_tell_how_to_calibrate_again(here, capsys):
    assert Run.open("sure", here / "runs").config()["calibration"] == {"on": "cv", "coverage": 0.8, "folds": 5}
    assert "calibration" not in Run.open("plain", here / "runs").config()
    assert main(["report", "--run", "sure", "--out", "sure.html"]) == 0
    page = Path("sure.html").read_text()
    assert "--calibrate cv --coverage 0.8 --folds 5 --name sure" in page and "before calibration" in page


def test_the_command_says_what_calibrating_did(here, capsys):
    assert main(["train-head", "--data", "data", "--backbone", "pixels", "--head", "lda,gaussian-nb", "--calibrate",
                 "--runs-dir", "more"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("calibrated on 96 training images, each by a head that did not see it") == 2
    assert out.count("log loss") >= 4 and "(90 % wanted)" in out


def test_a_refitted_head_forgets_its_calibration(here):
    classifier = pipeline.ImageClassifier.load("sure", here / "runs")
    assert classifier.calibrated
    with pipeline.extract("data", "pixels").open() as cache:
        classifier.head.fit(*cache.split("train"))
    assert not classifier.calibrated


def test_a_head_whose_familiarity_does_not_fit_is_refused(here, tmp_path):
    from pipeline.heads import fit_out_of_distribution, load_head, save_head

    head, metadata = load_head(here / "runs" / "sure")
    head.familiarity_ = fit_out_of_distribution(np.random.default_rng(0).random((20, 7)))
    save_head(head, tmp_path, metadata)
    with pytest.raises(RunError, match="no usable head"):
        load_head(tmp_path)
    head.set_threshold_ = 7.0
    save_head(head, tmp_path, metadata)
    with pytest.raises(RunError, match=r"from a probability of 7\.0 on"):
        load_head(tmp_path)


def test_without_val_images_calibrating_on_val_is_refused(here, tmp_path):
    shutil.copytree(here / "data" / "train", tmp_path / "data" / "train")
    done = pipeline.extract(str(tmp_path / "data"), "pixels", cache_dir=tmp_path / "cache", val_fraction=None)
    with FeatureCache.open(done.path) as cache:
        assert not len(cache.indices("val"))
    with pytest.raises(PipelineError, match="no labelled val images to calibrate on"):
        train(tmp_path, "none", Calibration("val"))
