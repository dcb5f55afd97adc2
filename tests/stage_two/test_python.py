"""What a notebook's user types: flat keywords, True for bars, data frames, short representations."""

from __future__ import annotations

import numpy as np
import pytest
from finetuning_support import one_thread, small_photos  # noqa: F401

import pipeline
from pipeline.core.errors import PipelineError, UnknownNameError

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    small_photos(folder)
    return folder


@pytest.fixture
def common(place, monkeypatch):
    monkeypatch.chdir(place)
    pipeline.extract("photos", "pixels")
    return {"data": "photos", "backbone": "pixels"}


def test_settings_are_keywords_and_true_is_a_sweep_as_it_comes(common):
    run = pipeline.train_head("logistic", **common, C=0.01, scaling="standardize")
    assert run.config()["head"]["settings"]["C"] == 0.01 and "C=0.01" in run.metrics["told"]
    swept = pipeline.train_head("ridge", **common, sweep=True, calibration=True)
    assert swept.metrics["choice"]["candidates"] > 1 and swept.metrics["calibration"]["n"]
    runs = pipeline.train_heads(["ridge", "logistic"], **common, C=0.5)
    assert [one.metrics["told"] for one in sorted(runs, key=lambda run: run.metrics["head"])] == ["C=0.5", ""]


@pytest.mark.parametrize("wrong, said", [({"c": 1}, "Did you mean 'C'"), ({"sweeep": True}, "Did you mean 'sweep'")])
def test_a_mistyped_keyword_is_named(common, wrong, said):
    with pytest.raises(UnknownNameError, match=said):
        pipeline.train_head("logistic", **common, **wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'epochs'"):
        pipeline.finetune("photos", epoch=1)


def test_finetune_takes_its_settings_as_keywords(common):
    run = pipeline.finetune("photos[:8]", epochs=1, strategy="head-only", cached=True, batch_size=4)
    assert run.metrics["asked"]["finetune"]["epochs"] == 1 and run.metrics["strategy"] == "head-only"


def test_finetune_takes_a_preset_and_what_is_given_replaces_its_settings(common):
    run = pipeline.finetune("photos[:8]", epochs=1, batch_size=4)
    asked = run.metrics["asked"]["finetune"]
    assert run.metrics["strategy"] == "lp-discriminative" and asked["optimizer"] == "adamw"
    assert (asked["epochs"], asked["batch_size"]) == (1, 4) and run.metrics["told"] == "epochs=1, batch_size=4"
    with pytest.raises(UnknownNameError, match="Did you mean 'one-cycle'"):
        pipeline.finetune("photos[:8]", preset="onecycle")
    with pytest.raises(PipelineError, match="not both"):
        pipeline.finetune("photos[:8]", settings=pipeline.FinetuneSettings(), preset="one-cycle")


def test_a_strategy_named_beside_the_preset_moves_no_pretrained_weight_at_the_heads_rate():
    usual = pipeline.FinetuneSettings.of()
    for strategy in ("whole", "partial", "lp-ft"):
        assert pipeline.FinetuneSettings.of(strategy=strategy).lr == pytest.approx(usual.lr * usual.backbone_rate)
    for strategy in ("head-only", "scratch", "discriminative"):
        assert pipeline.FinetuneSettings.of(strategy=strategy).lr == usual.lr
    assert pipeline.FinetuneSettings.of(strategy="whole", lr=0.5).lr == 0.5
    tutorial = pipeline.FinetuneSettings.of("tutorial", strategy="whole")
    assert tutorial == pipeline.FinetuneSettings() and tutorial.told == "tutorial"


def test_true_shows_bars(common, capsys):
    pipeline.extract("photos", "pixels", cache_dir="fresh", progress=True)
    assert "Extracting" in capsys.readouterr().err


def test_runs_comparisons_predictions_and_caches_are_data_frames(common, place):
    run = pipeline.train_head("logistic", **common)
    frame = run.to_frame("val")
    assert frame["prob"].between(0, 1).all() and len(frame) == 8
    compared = pipeline.compare().to_frame()
    assert {"name", "split", "splits.val.accuracy", "seconds.train"} <= set(compared.columns)
    paths = sorted(map(str, (place / "photos" / "val").rglob("*.jpg")))
    predicted = pipeline.predict([*paths, "gone.jpg"], run).to_frame()
    assert predicted["path"].tolist()[:-1] == paths and predicted["probabilities.china"].notna().sum() == 8
    assert predicted["label"].isna().tolist() == [False] * 8 + [True]
    with pipeline.extract("photos", "pixels").open() as cache:
        whole = cache.to_frame(features=True)
        assert whole["label"].value_counts().tolist() == [16, 16] and whole["path"].tolist() == cache.paths
        np.testing.assert_array_equal(whole.filter(like="feature_").to_numpy(), cache.read_rows())


def test_what_is_printed_of_a_data_set_or_a_run_is_a_line(common):
    printed = repr(pipeline.load_dataset("photos"))
    assert printed.startswith("<Dataset photos in ") and printed.endswith(": 6 test, 18 train, 8 val; 2 classes>")
    run = pipeline.train_head("logistic", **common)
    assert repr(run).startswith("<Run runs/photos-pixels-logistic") and "val " in repr(run) and len(repr(run)) < 200


def test_notes_are_logged(common, caplog):
    with caplog.at_level("INFO", "pipeline"):
        pipeline.train_head("logistic", **common, C=0.01, name="noted")
        pipeline.train_head("logistic", **common, C=0.02, name="noted")
        pipeline.finetune("photos[:8]", epochs=1, strategy="head-only", cached=True, batch_size=4, name="logged")
    assert "noted has other settings and stays" in caplog.text and "epoch 1/1" in caplog.text
