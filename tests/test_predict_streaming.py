"""Predictions of many images: into a file, and on from where it stopped; and as a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.runs import Run
from pipeline.streaming import predict_to_csv


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(40):
            place = folder / "data" / name
            place.mkdir(parents=True, exist_ok=True)
            top, left = 48 * (number // 10), 48 * (number % 10)
            Image.fromarray(photo[top : top + 48, left : left + 48]).save(place / f"{number:02}.png")
    pipeline.extract(str(folder / "data"), "pixels", cache_dir=folder / "cache")
    pipeline.train_head("ridge", str(folder / "data"), "pixels", name="ridge", cache_dir=folder / "cache",
                        runs_dir=folder / "runs")  # fmt: skip
    return folder


@pytest.fixture
def here(studio, monkeypatch) -> Path:
    monkeypatch.chdir(studio)
    for left in [*studio.glob("out*"), *studio.glob(".out*")]:
        left.unlink()
    return studio


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def images(here: Path) -> list[Path]:
    return sorted((here / "data").rglob("*.png"))


class Interrupting:
    """A classifier that is stopped after some images, and counts those that it looks at."""

    def __init__(self, classifier, after: int):
        self.classifier, self.classes, self.left, self.seen = classifier, classifier.classes, after, 0

    def stream(self, images):
        for prediction in self.classifier.stream(images):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left, self.seen = self.left - 1, self.seen + 1
            yield prediction


def opened(here: Path) -> tuple[Run, pipeline.ImageClassifier]:
    run = Run.open("ridge", here / "runs")
    return run, pipeline.ImageClassifier.load(run)


def test_rows_are_the_predictions_in_order(here, capsys):
    assert main(["predict", "data", "--csv", "out.csv"]) == 0
    assert "out.csv: 80 images classified, 0 unreadable" in capsys.readouterr().out
    _, classifier = opened(here)
    for row, ours in zip(rows(here / "out.csv"), classifier.predict(images(here)), strict=True):
        assert (row["label"], float(row["prob"])) == (ours.label, pytest.approx(ours.prob))
        assert Path(row["path"]).name == Path(ours.path).name
        assert float(row["china"]) == pytest.approx(ours.probabilities["china"])


def test_an_interrupted_file_is_gone_on_with_and_no_image_is_seen_twice(here):
    run, classifier = opened(here)
    whole = predict_to_csv(classifier, run, images(here), here / "out-whole.csv")
    with pytest.raises(KeyboardInterrupt):
        predict_to_csv(Interrupting(classifier, 30), run, images(here), here / "out.csv")
    assert not (here / "out.csv").exists()
    (partial,) = here.glob(".out.csv.*.partial")
    partial.write_bytes(partial.read_bytes()[:-7])  # killed in the middle of a row
    again = Interrupting(classifier, -1)
    done = predict_to_csv(again, run, images(here), here / "out.csv")
    assert done.resumed == 29 and again.seen == 51
    # to the last digits: other images share a forward pass
    for row, other in zip(rows(here / "out.csv"), rows(whole.path), strict=True):
        assert (row["path"], row["label"]) == (other["path"], other["label"])
        assert float(row["prob"]) == pytest.approx(float(other["prob"]), rel=1e-5)
    assert not list(here.glob(".out*"))


def test_rows_of_another_run_are_never_gone_on_with(here):
    run, classifier = opened(here)
    with pytest.raises(KeyboardInterrupt):
        predict_to_csv(Interrupting(classifier, 30), run, images(here), here / "out.csv")
    metrics = (run.path / "metrics.json").read_text()
    try:
        (run.path / "metrics.json").write_text(metrics + " ")
        assert predict_to_csv(classifier, run, images(here), here / "out.csv").resumed == 0
    finally:
        (run.path / "metrics.json").write_text(metrics)


def test_an_unreadable_image_has_its_reason_beside_its_own_name(here, tmp_path, capsys):
    for number, source in enumerate(images(here)[:3]):
        (tmp_path / f"{number}.png").write_bytes(source.read_bytes() if number != 1 else b"no image")
    assert main(["predict", str(tmp_path), "--csv", "out.csv"]) == 0
    found = rows(here / "out.csv")
    assert [bool(row["label"]) for row in found] == [True, False, True]
    assert found[1]["path"].endswith("1.png") and "known format" in found[1]["reason"]
    out, error = capsys.readouterr()
    assert "2 images classified, 1 unreadable" in out and "1.png" in error


def test_a_grid_shows_images_with_their_labels(here, capsys):
    assert main(["predict", "data/china", "--grid", "out.png"]) == 0
    page = Image.open("out.png")
    assert page.width > 6 * 48 and page.height > 6 * 48
    assert main(["predict", "data/china", "--grid", "out.nothing"]) == 2
    assert "Cannot write 'out.nothing'" in capsys.readouterr().err


def test_show_draws_images_of_a_split_with_their_labels_or_as_training_sees_them(here, capsys):
    assert main(["show", "--data", "data", "--split", "val", "--count", "7", "--out", "out-plain.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "out-plain.png", "images": 7}
    assert main(["show", "--data", "data", "--augmentation", "tutorial", "--count", "7", "--out", "out-views.png"]) == 0
    plain, views = (Image.open(name) for name in ("out-plain.png", "out-views.png"))
    assert views.size > plain.size  # tiles of 48 pixels, and views at the network's size made small
    assert main(["show", "--data", "data", "--split", "test"]) == 2
    assert "no image to show" in capsys.readouterr().err
