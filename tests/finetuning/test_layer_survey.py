"""What `layers` says of each place where a network can be cut."""

from __future__ import annotations

import json

import pytest
from finetuning_support import one_thread, small_backbone, small_photos  # noqa: F401

from pipeline import cli
from pipeline.core.errors import PipelineError
from pipeline.finetuning import FinetuneSettings
from pipeline.finetuning.cutting import Place, cut_places, lowest_of_half, with_unfreeze
from pipeline.finetuning.finetune import finetune
from pipeline.finetuning.layer_survey import CutSurvey, _is_dominated, survey_layers
from pipeline.runs.run import layer_survey


@pytest.fixture(scope="module", autouse=True)
def short_steps():
    """Time steps of two images: how long they take is nothing that a test could know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.finetuning.layer_survey.SAMPLE", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("layers")
    small_photos(made)
    return made


@pytest.fixture(scope="module")
def survey(folder):
    return survey_layers(str(folder / "photos"), small_backbone(), cache_dir=folder / "cache", runs_dir=folder / "runs")


def test_every_block_has_its_place_with_shape_disk_work_and_a_probe(survey):
    cuts = {cut.layer: cut for cut in survey.cuts}
    assert [cut.unfreeze for cut in survey.cuts[-3:]] == ["blocks.15", "conv_head", ""]
    assert cuts["blocks.10"].shape == (112, 2, 2) and cuts["pooled"].shape == (1280,)
    assert cuts["blocks.10"].kilobytes == pytest.approx(112 * 2 * 2 * 2 / 1000)
    assert cuts["blocks.10"].gigabytes == pytest.approx(survey.images * cuts["blocks.10"].kilobytes / 1e6)
    shares = [cut.share for cut in survey.cuts]
    assert shares == sorted(shares, reverse=True) and 0.9 < shares[0] < 1 and shares[-1] == 0
    assert all(cut.seconds > 0 and 0 <= cut.accuracy_ci95[0] <= cut.accuracy <= cut.accuracy_ci95[1] <= 1
               for cut in survey.cuts)
    assert max(cut.accuracy for cut in survey.cuts) > 0.75  # a temple or a flower
    assert survey.train == survey.probed == 18 and survey.images == 32 and survey.whole_seconds > 0


def test_the_survey_is_kept_for_reports_and_a_second_one_computes_no_features(survey, folder, monkeypatch):
    kept = layer_survey(folder / "runs", "photos", "efficientnet_lite0")
    assert kept == json.loads(json.dumps(survey.to_dict()))
    monkeypatch.setattr("pipeline.engines.embedding.Embedder.embed", lambda *a, **k: pytest.fail("computed again"))
    again = survey_layers(str(folder / "photos"), small_backbone(), cache_dir=folder / "cache", runs_dir=folder / "r")
    assert [cut.accuracy for cut in again.cuts] == [cut.accuracy for cut in survey.cuts]


def test_a_cut_is_dominated_by_one_below_it_that_takes_no_more_of_anything():
    def cut(kilobytes: float, seconds: float) -> CutSurvey:
        return CutSurvey("", "", (), kilobytes, 0, 0, seconds, 0, (0, 0), False, "")

    below = [cut(40, 3), cut(30, 2)]
    assert _is_dominated(cut(30, 1.9), below) and _is_dominated(cut(44, 2.8), below)
    assert not _is_dominated(cut(20, 2), below) and not _is_dominated(cut(44, 1), below)


def test_auto_takes_the_lowest_place_with_half_of_the_work_above(folder):
    places = [Place("a", "x", (1,), 0.9), Place("b", "y", (1,), 0.5), Place("c", "z", (1,), 0.2)]
    assert lowest_of_half(places) == "b"
    settings = FinetuneSettings(unfreeze="auto", cached=True, epochs=1, batch_size=6, precision="float32")
    chosen = with_unfreeze(settings, small_backbone()).unfreeze
    expected = next(place for place in cut_places(small_backbone()) if place.share <= 0.5)
    assert chosen == expected.unfreeze != ""
    run = finetune(str(folder / "photos"), small_backbone(), settings, cache_dir=folder / "cache",
                   runs_dir=folder / "runs")
    assert run.metrics["asked"]["finetune"]["unfreeze"] == chosen and f"unfreeze={chosen}" in run.metrics["told"]


def test_the_command_prints_a_table_and_one_json_object(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["layers", "photos", "--limit", "12"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cuts"][0]["command"].startswith("pipeline finetune --cached --data 'photos[:12]' --unfreeze")
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "(head only)" in printed and "--unfreeze auto" in printed
    assert max(map(len, printed.splitlines()[1:-2])) <= 100


def test_what_cannot_be_surveyed_is_said(folder):
    from dataclasses import replace

    with pytest.raises(PipelineError, match="leave --layer"):
        survey_layers(str(folder / "photos"), replace(small_backbone(), layer="blocks.3"), cache_dir=folder / "cache")
    with pytest.raises(PipelineError, match=r"Unknown storage 'float61'\. Did you mean 'float16'"):
        survey_layers(str(folder / "photos"), small_backbone(), cache_dir=folder / "cache", storage="float61")
