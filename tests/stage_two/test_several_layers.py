"""Heads on a cache of several layers: which they use, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from finetuning_support import one_thread, small_photos  # noqa: F401

import pipeline

STAGES = pipeline.resolve(layer="stages")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    small_photos(folder)
    pipeline.extract(str(folder / "photos"), STAGES, cache_dir=folder / "cache")
    return folder


def trained(place, head: str, **more):
    return pipeline.train_head(head, str(place / "photos"), STAGES, cache_dir=place / "cache", runs_dir=place / "runs",
                               overwrite=True, **more)


def test_a_linear_head_says_which_layers_it_uses_and_predicts_with_them(place):
    run = trained(place, "logistic", calibration=True)
    layers = run.metrics["layers"]
    assert layers["chosen"][0] == "pooled" and layers["sentence"]
    assert "blocks.7:meanmax" in [*layers["chosen"], *layers["left_out"]]
    rows = {row["filename"]: row for row in run.predictions("val")}
    paths = [str(place / "photos" / name) for name in rows]
    again = pipeline.ImageClassifier.load(run).predict(paths)
    np.testing.assert_allclose([one.prob for one in again], [float(row["prob"]) for row in rows.values()], atol=1e-3)
    assert run.config()["backbone"]["layer"] == "stages"


def test_settings_that_are_given_stay_and_other_heads_are_standardised(place):
    given = trained(place, "logistic", scaling="standardize")
    assert "layers" not in given.metrics and given.config()["head"]["settings"]["scaling"] == "standardize"
    knn, ridge = trained(place, "knn"), trained(place, "ridge")
    assert "layers" not in knn.metrics and "scaling" not in knn.config()["head"]["settings"]  # it standardises anyway
    assert ridge.config()["head"]["settings"]["scaling"] == "standardize"


def test_a_sweep_and_the_command_that_makes_a_run_again_keep_to_the_choice(place):
    from pipeline.reports.content import command

    run = trained(place, "logistic", sweep=True)
    assert run.metrics["layers"]["chosen"] and run.metrics["choice"]["candidates"] > 1
    assert "groups" not in command(run) and "--layer stages" in command(run)
