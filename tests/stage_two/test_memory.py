"""Features that do not fit into memory: `train-head --max-memory` streams them, and says so."""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pytest
import store_tools
from store_tools import digest, listing

from pipeline.cli import main
from pipeline.cli.flags import memory
from pipeline.core.errors import CacheError
from pipeline.core.machine import available_memory
from pipeline.heads import HEADS
from pipeline.heads.ridge import RidgeHead
from pipeline.stage_two import fit as fitting
from pipeline.stage_two.fit import Sweep, Training, fit_head, must_stream, probabilities_of
from pipeline.store import FeatureCache

META = {"dataset": "photos", "root": "images", "backbone": "test", "label": "test", "description": {"name": "test"}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a cache of 300 images whose class shows in their features."""
    images = listing(300)
    images = images.but(labels=[int(digest(content)[0] > 127) for content in images.contents])
    path = tmp_path_factory.mktemp("cache") / "photos.h5"
    store_tools.extract(path, images, meta=META)
    return path


@pytest.mark.parametrize("name", [name for name, entry in HEADS.items() if entry.streams])
def test_little_memory_gives_the_same_head_from_a_stream(path, name):
    with FeatureCache.open(path) as cache:
        whole, streamed = (fit_head(cache, name, Training(max_memory=most)) for most in (10**9, 10**4))
        assert (whole.streamed, streamed.streamed) == (False, True)
        rows = cache.indices("val")
        found = [probabilities_of(cache, fitted.head, rows) for fitted in (whole, streamed)]
    np.testing.assert_allclose(found[1], found[0], atol=0.2 if HEADS[name].needs_torch else 2e-3)
    assert whole.selection == streamed.selection


def test_rows_are_scored_a_few_at_a_time(path, monkeypatch):
    monkeypatch.setattr(fitting, "CHUNK", 7)
    with FeatureCache.open(path) as cache:
        head = fit_head(cache, "lda").head
        rows = cache.indices("train")
        expected = head.predict_proba(cache.read_rows(rows))
        most = []
        monkeypatch.setattr(cache, "read_rows", lambda rows, view=None, read=cache.read_rows: (
            most.append(len(rows)), read(rows, view=view))[1])
        np.testing.assert_allclose(probabilities_of(cache, head, rows), expected, atol=1e-6)
    assert max(most) == 7


def test_a_head_that_needs_all_rows_names_those_that_do_not(path):
    with FeatureCache.open(path) as cache, pytest.raises(CacheError, match=r"knn needs all rows.*linear.*gaussian-nb"):
        fit_head(cache, "knn", Training(max_memory=10**4))


def test_repeats_of_a_streamed_head_in_which_nothing_is_random_train_it_once_and_say_so(path, monkeypatch):
    fits = []
    fit = RidgeHead.fit
    monkeypatch.setattr(RidgeHead, "fit", lambda self, *words: (fits.append(1), fit(self, *words))[1])
    with FeatureCache.open(path) as cache:
        begin = time.perf_counter()
        found = fit_head(cache, "ridge", Training(repeats=50, max_memory=10**4))
        taken = time.perf_counter() - begin
    assert found.streamed and len(fits) == 1 and not found.repeats
    assert "nothing in it is random" in found.notes[0]
    assert found.seconds > taken / 5  # its own, not a fiftieth of it


def test_a_sweep_of_streamed_rows_is_refused(path):
    with FeatureCache.open(path) as cache, pytest.raises(CacheError, match="a sweep reads it too often"):
        fit_head(cache, "ridge", Training(sweep=Sweep(), max_memory=10**4))


def test_rows_too_wide_for_their_matrices_are_refused(path):
    with FeatureCache.open(path) as cache:
        with pytest.raises(CacheError, match="matrices of 4 x 4"):
            fit_head(cache, "ridge", Training(max_memory=100))
        with pytest.raises(CacheError, match="matrices of 4 x 4"):
            fit_head(cache, "lda", Training(max_memory=100))
        assert fit_head(cache, "gaussian-nb", Training(max_memory=100)).streamed


def test_what_is_available_decides_where_nothing_is_said(path):
    assert 10**7 < available_memory() < 10**14
    with FeatureCache.open(path) as cache:
        assert not must_stream(cache, None)


def test_the_command_says_that_it_streamed(path, tmp_path, capsys):
    assert main(["train-head", "--features", str(path), "--head", "ridge", "--max-memory", "10kB", "--runs-dir",
                 str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["runs"][0]["streamed"]
    assert "streamed from the file" in err
    assert len((tmp_path / "photos-test-ridge" / "predictions.csv").read_text().splitlines()) == 301


def test_calibration_of_streamed_rows_is_refused_before_training(path, tmp_path, capsys):
    assert main(["train-head", "--features", str(path), "--head", "ridge", "--max-memory", "10kB", "--runs-dir",
                 str(tmp_path), "--calibrate"]) == 2
    assert "calibration takes all training rows" in capsys.readouterr().err


def test_several_heads_stream_one_after_the_other(path, tmp_path, capsys):
    assert main(["train-head", "--features", str(path), "--head", "lda,gaussian-nb", "--max-memory", "10kB",
                 "--runs-dir", str(tmp_path), "--json"]) == 0
    assert [run["streamed"] for run in json.loads(capsys.readouterr().out)["runs"]] == [True, True]


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("512MB", 512 * 10**6), ("1.5 GiB", 3 << 29),
                                            ("2g", 2 * 10**9), ("1000", 1000), ("10kB", 10_000)])
def test_amounts_of_memory_are_read_as_people_write_them(text, size):
    assert memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "4XB", "-1GB", "0", "1.2.3GB", "GB"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no amount of memory"):
        memory(text)
