"""The figures that the README promises, measured again: frozen features of real images make good classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline


def val_accuracy(head: str, data: str, place: Path, backbone: str = "efficientnet_lite0", **settings) -> float:
    network = pipeline.resolve(backbone, settings.pop("weights", None))
    pipeline.extract(data, network, cache_dir=place / "cache")
    run = pipeline.train_head(head, data, network, cache_dir=place / "cache", runs_dir=place / "runs")
    return run.metrics["splits"]["val"]["accuracy"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("accuracy")


def test_frozen_features_name_the_photograph_and_the_baselines_are_far_below_in_the_same_table(place):
    """Raw pixels and an untrained network: what is gained is not in the head."""
    frozen = val_accuracy("logistic", "phototiles", place)
    assert frozen >= 0.95
    assert val_accuracy("logistic", "phototiles", place, "pixels") < frozen - 0.3
    assert val_accuracy("svm-rbf", "phototiles", place, "pixels") < frozen - 0.15
    assert val_accuracy("logistic", "phototiles", place, weights="random") < frozen - 0.2
    runs = pipeline.compare("phototiles", runs_dir=place / "runs")
    assert runs[0]["features"] == "efficientnet_lite0"
    assert {run["features"] for run in runs[1:]} == {"pixels", "efficientnet_lite0 random"}


@pytest.mark.parametrize(
    ("head", "data", "least"),
    [
        ("logistic", "hymenoptera_data", 0.94),
        ("linear", "hymenoptera_data", 0.93),
        ("logistic", "cats_dogs", 0.97),
        ("linear", "cats_dogs", 0.97),
    ],
)
def test_real_photos_reach_the_published_figures(head, data, least, photos, place):
    assert val_accuracy(head, str(photos / data), place) >= least
