"""A run as one file: asked by another runtime, it answers as the run does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.runs import export as exporting
from pipeline.runs.run import Run


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose runs are of raw pixels, quick to export."""
    folder = tmp_path_factory.mktemp("export")
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(16):
            place = folder / "data" / ("val" if number % 4 == 0 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            top, left = 96 * (number // 6), 96 * (number % 6)
            Image.fromarray(photo[top : top + 96, left : left + 96]).save(place / f"{number}.png")
    place = {"cache_dir": folder / "cache", "runs_dir": folder / "runs"}
    pipeline.extract(str(folder / "data"), "pixels", cache_dir=place["cache_dir"])
    for head, scaling in (("logistic", "standardize"), ("ridge", "l2"), ("knn", "none")):
        pipeline.train_head(head, str(folder / "data"), "pixels", settings={"scaling": scaling}, name=head, **place)
    return folder


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize("run", ["logistic", "ridge"])
def test_onnx_runtime_answers_as_the_run_does(here, run, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", "--run", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    session = onnxruntime.InferenceSession(told["path"])
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == ["china", "flower"]
    classifier = pipeline.ImageClassifier.load(run)
    assert json.loads(known["transform"]) == json.loads(json.dumps(classifier.backbone.transform.to_dict()))
    files = sorted((here / "data" / "val").rglob("*.png"))
    pixels = np.stack([classifier.backbone.transform(Image.open(file).convert("RGB")) for file in files])
    (found,) = session.run(None, {"pixels": pixels})
    for row, ours in zip(found, classifier.predict(files), strict=True):
        assert row == pytest.approx(list(ours.probabilities.values()), abs=1e-4)
        assert ["china", "flower"][row.argmax()] == ours.label


def test_an_exported_program_answers_as_the_run_does_without_this_package(here):
    import torch

    done = exporting.export(Run.open("logistic"), "torch-export")
    extra = {exporting.METADATA: ""}
    program = torch.export.load(done["path"], extra_files=extra)
    assert json.loads(extra[exporting.METADATA])["classes"] == ["china", "flower"]
    (file, *_), classifier = sorted((here / "data" / "val").rglob("*.png")), pipeline.ImageClassifier.load("logistic")
    pixels = classifier.backbone.transform(Image.open(file).convert("RGB"))[None]
    (ours,) = classifier.predict([file])
    assert program.module()(torch.from_numpy(pixels.copy()))[0].tolist() == pytest.approx(
        list(ours.probabilities.values()), abs=1e-4
    )


def test_a_run_that_averages_over_views_is_exported_with_a_word_about_it(here, capsys):
    pytest.importorskip("onnxruntime")
    done = pipeline.extract("data", "pixels", views=2)
    assert main(["train-head", "--features", str(done.path), "--tta", "--name", "averaged"]) == 0
    assert main(["export", "--run", "averaged", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "does not average" in err
    assert "does not average" in json.loads(out[out.index("{") :])["notes"][0]


def test_a_head_that_is_not_linear_is_refused(here, capsys):
    assert main(["export", "--run", "knn"]) == 2
    assert "KNNHead) is not linear, so it cannot be exported; train logistic" in capsys.readouterr().err
    assert not list((here / "runs" / "knn").glob("*model*"))


def test_an_unknown_format_is_refused_with_a_hint(here, capsys):
    assert main(["export", "--run", "ridge", "--format", "onyx"]) == 2
    assert "Did you mean 'onnx'" in capsys.readouterr().err


def test_a_file_that_answers_otherwise_is_not_kept(here, monkeypatch):
    ours = exporting._ours
    monkeypatch.setattr(exporting, "_ours", lambda *given: ours(*given)[:, ::-1])
    with pytest.raises(exporting.ExportError, match="answers otherwise than the run"):
        exporting.export(Run.open("logistic"), "torch-export", here / "other.pt2")
    assert not list(here.glob("*other*"))
