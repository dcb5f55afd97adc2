"""What an extraction would take, told before it is begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from images import names_in, write_images

import pipeline
from pipeline.cli import main


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
    assert names_in(cache) == ["digests.sqlite"]
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
    assert "to compute  60 images; rows of 0 are there" in capsys.readouterr().out
