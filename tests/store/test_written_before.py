"""Caches and runs that an earlier version wrote open, serve their rows, and cost no forward pass.

What lies in `written_before/` was made by version 0.1.0 of 27 November 2026 from 18 images of random shades:

    pipeline extract --data shades --backbone pixels --precision float16 [--part-rows 10 --cache-dir cache-in-parts]
    pipeline train-head --data shades --backbone pixels --precision float16 --calibrate
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import FeatureCache, ImageClassifier, Run
from pipeline.cli import main

FEATURES = ("--data", "shades", "--backbone", "pixels", "--precision", "float16")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(Path(__file__).parent / "written_before", tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("place", ["cache", "cache-in-parts"])
def test_a_cache_is_read_and_nothing_is_computed_again(project, place, capsys):
    (path,) = (project / place / "shades").glob("*.h5")
    with FeatureCache.open(path) as cache:
        before, labels = cache.read_rows(), cache.labels
        assert cache.problems() == [] and len(cache.pieces) == (1 if place == "cache" else 2)
    assert main(["extract", *FEATURES, "--cache-dir", place]) == 0
    assert "no forward pass" in capsys.readouterr().out
    with FeatureCache.open(path) as cache:
        assert np.array_equal(cache.read_rows(), before) and (cache.splits == "val").sum() == 6
    assert before[labels == 0].mean() < -0.3 < 0.3 < before[labels == 1].mean()  # dark and light


def test_a_run_predicts_what_it_did(project):
    run = Run.open("shades-pixels_float16-logistic")
    with (run.path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = ImageClassifier.load(run).predict([project / "shades" / row["filename"] for row in rows])
    for row, prediction in zip(rows, found, strict=True):
        assert prediction.label == row["prediction"] and prediction.possible and prediction.unfamiliar is not None
        assert prediction.probabilities[row["prediction"]] == pytest.approx(float(row["prob"]), abs=1e-4)
