"""Predictions of many images: into a file, and on from where it stopped; and as a picture."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.runs.prediction_table import columns, predict_to_file
from pipeline.runs.run import Run
from pipeline.store.disk import hold


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
        self.abstain_below = classifier.abstain_below

    def stream(self, images, **how):
        for prediction in self.classifier.stream(images, **how):
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
    whole = predict_to_file(classifier, run, images(here), here / "out-whole.csv")
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Interrupting(classifier, 30), run, images(here), here / "out.csv")
    assert not (here / "out.csv").exists()
    (partial,) = here.glob(".out.csv.*.partial")
    partial.write_bytes(partial.read_bytes()[:-7])  # killed in the middle of a row
    again = Interrupting(classifier, -1)
    done = predict_to_file(again, run, images(here), here / "out.csv")
    assert done.resumed == 29 and again.seen == 51
    # to the last digits: other images share a forward pass
    for row, other in zip(rows(here / "out.csv"), rows(whole.path), strict=True):
        assert (row["path"], row["label"]) == (other["path"], other["label"])
        assert float(row["prob"]) == pytest.approx(float(other["prob"]), rel=1e-5)
    assert not [*here.glob(".out*.partial"), *here.glob(".out*.new")]


def test_rows_of_another_run_are_never_gone_on_with(here):
    run, classifier = opened(here)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Interrupting(classifier, 30), run, images(here), here / "out.csv")
    metrics = (run.path / "metrics.json").read_text()
    try:
        (run.path / "metrics.json").write_text(metrics + " ")
        assert predict_to_file(classifier, run, images(here), here / "out.csv").resumed == 0
    finally:
        (run.path / "metrics.json").write_text(metrics)


def test_a_killed_process_over_thousands_of_images_is_gone_on_with(here, tmp_path):
    sources, total = images(here), 4000
    for number in range(total):
        (tmp_path / f"{number:04}.png").hardlink_to(sources[number % len(sources)])
    (tmp_path / "0500.png").unlink()
    (tmp_path / "0500.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "pipeline", "predict", str(tmp_path), "--csv", "out.csv"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not any(file.stat().st_size > 45_000 for file in here.glob(".out.csv.*.partial")):
        assert running.poll() is None, "it was over before it could be killed"
        time.sleep(0.005)
    running.kill()
    running.wait()
    assert not (here / "out.csv").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    resumed = int(again.stderr.split("interrupted call stopped: ")[1].split()[0])
    assert 256 <= resumed < total
    assert [Path(row["path"]).name for row in rows(here / "out.csv")] == [f"{number:04}.png" for number in range(total)]
    assert [Path(row["path"]).name for row in rows(here / "out.csv") if row["reason"]] == ["0500.png"]
    assert "3999 images classified, 1 unreadable" in again.stdout and "0500.png" in again.stderr


def test_two_processes_never_write_into_one_file(here, capsys):
    with hold(here / ".out.csv.lock", "it"):
        assert main(["predict", "data", "--csv", "out.csv"]) == 75
    assert "Another process is writing 'out.csv'" in capsys.readouterr().err


def test_parquet_holds_the_rows_of_the_csv_file_and_is_gone_on_with_likewise(here, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run, classifier = opened(here)
    (tmp_path / "broken.png").write_bytes(b"no image")
    wanted = [*images(here), tmp_path / "broken.png"]
    plain = predict_to_file(classifier, run, wanted, here / "out.csv")
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(Interrupting(classifier, 30), run, wanted, here / "out.parquet", parquet=True)
    assert not (here / "out.parquet").exists()
    done = predict_to_file(classifier, run, wanted, here / "out.parquet", parquet=True)
    assert done.resumed == 30 and done.failed == plain.failed
    table = parquet.read_table(done.path)
    assert table.column_names == ["path", "label", "prob", "china", "flower", "reason", "abstained", "unfamiliar",
                                  "possible"]
    assert str(table.schema.field("abstained").type) == "bool"
    assert str(table.schema.field("prob").type) == "double"
    for row, other in zip(table.to_pylist(), rows(plain.path), strict=True):
        assert (row["path"], row["label"] or "") == (other["path"], other["label"])
        assert row["reason"] == (other["reason"] or None)
        assert row["abstained"] is (False if other["abstained"] else None) and row["possible"] is None
        assert row["china"] == (pytest.approx(float(other["china"]), rel=1e-5) if other["china"] else None)


def test_parquet_beside_json_holds_the_same(here, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["predict", "data", "--parquet", "out.parquet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["predictions"]
    table = parquet.read_table("out.parquet").to_pylist()
    assert [(row["label"], row["prob"]) for row in table] == [(each["label"], each["prob"]) for each in told]


@pytest.mark.parametrize(("flags", "message"), [
    (["--csv", "out.parquet"], "use --parquet"), (["--csv", "out.csv", "--parquet", "out.parquet"], "ask for one"),
    (["--csv", "nowhere/out.csv"], "no folder 'nowhere'"), (["--parquet", "data"], "it is a folder"),
])  # fmt: skip
def test_a_file_that_cannot_be_is_refused_in_one_line_before_any_image_is_read(here, capsys, flags, message):
    assert main(["predict", "data", *flags]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note:")]
    assert len(error) == 1 and message in error[0]


def test_no_cell_is_a_formula_and_a_mark_tells_the_encoding_where_asked_for(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source in zip(("=1+1.png", "-2.png", "fine.png"), images(here), strict=False):
        (tmp_path / name).write_bytes(source.read_bytes())
    files = ["./=1+1.png", "fine.png"]
    run, classifier = opened(here)
    predict_to_file(classifier, run, ["=1+1.png", "-2.png", "fine.png"], tmp_path / "out.csv")
    assert [row["path"] for row in rows(tmp_path / "out.csv")] == ["'=1+1.png", "'-2.png", "fine.png"]
    assert main(["predict", *files, "--run", str(run.path), "--csv", "out.csv", "--bom"]) == 0
    assert (tmp_path / "out.csv").read_bytes().startswith("\ufeffpath,label,prob,".encode())
    assert {path.suffix for path in tmp_path.glob(".out.csv.*")} <= {".lock"}


def test_a_class_named_like_a_column_keeps_a_column_of_its_own():
    assert columns(["label", "cat"]) == ["path", "label", "prob", "label (class)", "cat", "reason",
                                         "abstained", "unfamiliar", "possible"]


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
