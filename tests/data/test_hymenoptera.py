"""Ants and bees: downloaded once, in full, or not at all."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import zipfile
from pathlib import Path

import pytest
from images import names_in, served, write_images

from pipeline.core.errors import DataError
from pipeline.data import load_dataset
from pipeline.data.download import unpack
from pipeline.data.hymenoptera import list_hymenoptera


@pytest.fixture
def server(tmp_path: Path):
    """Yield a folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served(folder) as address:
        yield folder, address


def archive(file: Path, names: dict[str, bytes]) -> str:
    with zipfile.ZipFile(file, "w") as target:
        for name, content in names.items():
            target.writestr(name, content)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def insects(folder: Path) -> dict[str, bytes]:
    places = ("train/ants", "train/bees", "val/ants", "val/bees")
    names = [f"{place}/{number}.jpg" for place in places for number in "12"]
    write_images(folder, *names)
    return {f"hymenoptera_data/{name}": (folder / name).read_bytes() for name in names}


def test_a_download_is_unpacked_counted_recorded_and_not_repeated(server, tmp_path):
    folder, address = server
    sha256 = archive(folder / "h.zip", insects(tmp_path / "source") | {"__MACOSX/x": b"litter"})
    samples = list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip")
    assert samples.name == "hymenoptera"
    assert samples.classes == ("ants", "bees")
    assert len(samples.paths) == 8
    assert any(sha256 in note for note in samples.notes)
    assert any("Expected 244 train and 153 val photographs" in note for note in samples.notes)
    record = json.loads((tmp_path / "cache/downloads/hymenoptera_data.json").read_text())
    assert record == {"url": f"{address}/h.zip", "bytes": (folder / "h.zip").stat().st_size, "sha256": sha256}
    (folder / "h.zip").unlink()
    assert list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip").paths == samples.paths
    assert names_in(tmp_path / "cache/downloads") == ["hymenoptera_data", "hymenoptera_data.json"]


def test_a_damaged_download_is_fetched_again_and_must_be_the_same(server, tmp_path):
    folder, address = server
    archive(folder / "h.zip", insects(tmp_path / "source"))
    list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip")
    place = tmp_path / "cache/downloads/hymenoptera_data/train/ants"
    (place / "1.jpg").unlink()
    assert len(list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip").paths) == 8
    (place / "1.jpg").unlink()
    archive(folder / "h.zip", insects(tmp_path / "other source"))
    with pytest.raises(DataError, match=r"not the expected .* delete .*hymenoptera_data.json to accept another"):
        list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip")


def test_a_changed_download_may_be_used_all_the_same_without_a_network(server, tmp_path):
    folder, address = server
    archive(folder / "h.zip", insects(tmp_path / "source"))
    samples = list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip")
    (samples.root / "train/ants/1.jpg").unlink()
    (folder / "h.zip").unlink()
    with pytest.raises(DataError, match=r"404.* to use it all the same, delete .*\.manifest\.json\.$"):
        list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip")
    (samples.root / ".manifest.json").unlink()
    assert len(list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip").paths) == 7


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "the server answers 404"),
        ("sha256", "has the SHA-256 .*, not the expected 0000"),
        ("no zip", "is damaged or no zip archive"),
        ("cut off", r"ended after [\d,]+ of [\d,]+ bytes"),
        ("nobody there", "Cannot download .*: .*refused"),
        ("bit rot", "is damaged or no zip archive"),
    ],
)
def test_a_failed_download_is_one_line_that_says_where_to_put_a_copy(server, tmp_path, fault, message):
    folder, address = server
    file = folder / "h.zip"
    archive(file, insects(tmp_path / "source"))
    sha256 = "0" * 64 if fault == "sha256" else None
    if fault == "missing":
        file.unlink()
    elif fault == "no zip":
        file.write_text("<html>Please log in</html>")
    elif fault == "bit rot":
        content = bytearray(file.read_bytes())
        content[200] ^= 1
        file.write_bytes(content)
    elif fault == "cut off":
        address = serve_cut_off(file.read_bytes())
    elif fault == "nobody there":
        address = "http://127.0.0.1:9"
    with pytest.raises(DataError, match=message) as caught:
        list_hymenoptera(tmp_path / "cache", url=f"{address}/h.zip", sha256=sha256)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(
        f"put a copy by hand so that {tmp_path}/cache/downloads/hymenoptera_data/train/ants exists."
    )
    assert names_in(tmp_path / "cache/downloads") == []


def serve_cut_off(content: bytes) -> str:
    """Serve half of `content` once, though all of it was announced; return the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

        def log_message(self, *_: object) -> None:
            pass

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.handle_request, daemon=True).start()
    return f"http://127.0.0.1:{running.server_port}"


@pytest.mark.parametrize("place", ["downloads", "PIPELINE_DATA"])
def test_a_copy_that_is_already_there_is_used_and_left_as_it_is(tmp_path, monkeypatch, place):
    home = tmp_path / "cache/downloads" if place == "downloads" else tmp_path / "own"
    insects(home / "hymenoptera_data")
    if place == "PIPELINE_DATA":
        monkeypatch.setenv("PIPELINE_DATA", str(home))
    samples = list_hymenoptera(tmp_path / "cache", url="http://127.0.0.1:9/none")
    assert samples.root == home / "hymenoptera_data"
    assert len(samples.paths) == 8


def test_the_real_copy_is_what_it_should_be(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_DATA", str(photos))
    dataset = load_dataset("hymenoptera", cache_dir=tmp_path)
    assert dataset.name == "hymenoptera"
    assert len(dataset) == 397
    assert dataset.notes == ()


@pytest.mark.parametrize("name", ["../evil", "top/../../evil", "/etc/evil", "C:/evil", "top\\..\\..\\evil"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path, name):
    archive(tmp_path / "a.zip", {name: b"evil"})
    (tmp_path / "into").mkdir()
    with pytest.raises(DataError, match="no plain file inside it"):
        unpack(tmp_path / "a.zip", tmp_path / "into", top="top", max_bytes=1000, max_files=10)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "into"]


def test_links_bombs_and_crowds_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("top/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as target:
        target.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("top/big", bytes(10**6))
    archive(tmp_path / "crowd.zip", {f"top/{number}": b"" for number in range(11)})
    for name, message in (("link", "no plain file"), ("bomb", "or 1,000 bytes"), ("crowd", "more than 10 files")):
        with pytest.raises(DataError, match=message):
            unpack(tmp_path / f"{name}.zip", tmp_path / "into", top="top", max_bytes=1000, max_files=10)
    assert not (tmp_path / "into").exists()
