"""What an extraction would take, told before it is begun."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import names_in, write_images

import pipeline
from pipeline.cli import main
from pipeline.stage_one.estimation import Load, Writing, scaling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", *(f"{label}/{n}.png" for label in "ab" for n in range(30)))


def test_it_counts_what_extract_then_does_and_writes_nothing(folder, tmp_path):
    cache = tmp_path / "c"
    (folder / "a/copy.png").write_bytes((folder / "a/1.png").read_bytes())
    (folder / "a/broken.png").write_bytes(b"broken")
    (folder / "a/notes.txt").write_text("x")
    found = pipeline.estimate(str(folder), "pixels", cache_dir=cache)
    assert (found.images, found.skipped, found.to_compute, found.reused, found.duplicates) == (62, 1, 61, 0, 1)
    assert (found.sampled, found.failed) == (61, 1)
    assert found.images_per_second > 0 and found.seconds > 0
    assert set(found.pieces) == {"decode", "network"} and found.limited_by in found.pieces
    assert found.pieces[found.limited_by] == min(found.pieces.values())
    assert names_in(cache) == ["digests.sqlite", "splits.sqlite"]
    done = pipeline.extract(str(folder), "pixels", cache_dir=cache)
    assert found.path == done.path
    assert found.disk_bytes > done.path.stat().st_size
    again = pipeline.estimate(str(folder), "pixels", cache_dir=cache)
    assert (again.to_compute, again.reused, again.known_failures, again.seconds) == (0, 61, 1, 0)
    assert pipeline.estimate(str(folder), "pixels", cache_dir=cache, retry_failed=True).to_compute == 1


def test_a_damaged_cache_is_looked_at_and_left_as_it_is(folder, tmp_path):
    done = pipeline.extract(str(folder), "pixels", cache_dir=tmp_path / "c")
    content = bytearray(done.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    done.path.write_bytes(content)
    before = names_in(done.path.parent)
    found = pipeline.estimate(str(folder), "pixels", cache_dir=tmp_path / "c")
    assert found.to_compute + found.reused == 60
    assert names_in(done.path.parent) == before and done.path.read_bytes() == content
    assert pipeline.extract(str(folder), "pixels", cache_dir=tmp_path / "c").computed == found.to_compute


def test_the_command_respects_the_limit_and_prints_one_json_object(folder, tmp_path, capsys):
    words = ["extract", "--data", str(folder), "--backbone", "pixels", "--cache-dir", str(tmp_path / "c"), "--estimate"]
    assert main([*words, "--limit", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["to_compute"] == 10
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "to compute  60 images; rows of 0 are there" in out
    assert re.search(r"^alone       decoding [\d,]+ images/s, the network [\d,]+ images/s: .* limits$", out, re.M)


def test_it_tells_what_a_cluster_would_take_and_what_that_rests_on(folder, tmp_path, capsys):
    words = ["extract", "--data", str(folder), "--backbone", "pixels", "--cache-dir", str(tmp_path / "c"), "-j", "1"]
    assert main([*words, "--estimate", "--machines", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scaling"]
    # 60 images are two blocks: a third machine of one thread would find nothing to do, unless writing is slower still
    assert found["machines"] == 2 and found["most_machines"] <= 2 and found["seconds"] > found["finishing"] > 0
    assert names_in(tmp_path / "c") == ["digests.sqlite", "splits.sqlite"], "what was written for the trial is gone"
    assert main([*words, "--estimate", "--machines", "2"]) == 0
    told = capsys.readouterr().out
    assert "2 machines like this one" in told and "assumed: storage that gives them" in told
    assert main([*words, "--machines", "2"]) == 2
    assert main([*words, "--estimate", "--machines", "0"]) == 2
    assert "it must be at least 1" in capsys.readouterr().err


def test_a_cluster_scales_until_one_writer_or_the_blocks_set_a_limit():
    load = Load(images=1_024_000, rows=1_024_000, images_per_second=100, threads=4, loading=10, image_bytes=1e5,
                row_shape=(1000,), dtype=np.dtype("float32"))  # fmt: skip
    writing = Writing(commits=2000, finishes=10_240, block=1024)
    one, ten, twenty, more = (scaling(load, writing, machines) for machines in (1, 10, 20, 40))
    assert one.seconds == pytest.approx(10 + 10_240 + 100) and one.efficiency == 1
    assert ten.seconds == pytest.approx(10 + 1024 + 100) and 0.9 < ten.efficiency < 1
    assert (ten.read_bytes_per_second, ten.sent_bytes_per_second) == pytest.approx((1e8, 4e6))
    assert (twenty.most_machines, twenty.limited_by) == (20, "commits")
    assert more.seconds == pytest.approx(10 + 512 + 100), "the writer takes no more than 2000 rows a second"
    few = scaling(replace(load, images=8 * 1024, rows=8 * 1024), writing, 40)
    assert (few.most_machines, few.limited_by) == (2, "blocks")
    assert few.seconds == pytest.approx(10 + 1024 / 25 + 0.8), "a block is computed by one thread"
