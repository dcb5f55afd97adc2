"""Images in archives and tables and behind URLs: one contract for all, and nothing of what they hold is trusted."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from images import served, write_image, write_images

import pipeline
from pipeline.cli import main
from pipeline.core.errors import DataError
from pipeline.data import Limits, UnreadableImageError, list_images, load_dataset, read_bytes
from pipeline.data import files as fingerprints
from pipeline.data.containers import expand
from pipeline.data.sources import open_container
from pipeline.data.sources.archives import Archive
from pipeline.data.sources.base import Source
from pipeline.data.sources.blobs import StoreSource
from pipeline.data.sources.parquet import Table
from pipeline.reports.pictures import jpeg, missing

NAMES = [f"{label}/{number}.png" for label in ("ants", "bees") for number in range(10)]
Packer = Callable[[Path, Path], str]  # from a folder with class folders, and a place to write to, to what --data takes


def as_zip(folder: Path, target: Path, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(target / "photos.zip", "w", method) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return str(target / "photos.zip")


def as_tar(folder: Path, target: Path) -> str:
    with tarfile.open(target / "photos.tar", "w") as archive:
        archive.add(folder, "photos")  # all in one folder, as most are packed
    return str(target / "photos.tar")


def as_shards(folder: Path, target: Path) -> str:
    for shard in range(3):
        with tarfile.open(target / f"shard-{shard:03d}.tar", "w") as archive:
            for number, file in enumerate(sorted(folder.rglob("*.*"))):
                if number % 3 == shard:
                    add(archive, f"{number:06d}{file.suffix}", file.read_bytes())
                    label = file.parent.name
                    add(archive, f"{number:06d}.json", json.dumps({"label": label, "n": 1}).encode()) if number % 2 \
                        else add(archive, f"{number:06d}.cls", label.encode())  # fmt: skip
                    add(archive, f"{number:06d}.pyd", b"cos\nsystem\n(S'touch pwned'\ntR.")
    return str(target / "shard-{000..002}.tar")


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def table_of(folder: Path):
    pa = pytest.importorskip("pyarrow")
    files, classes = sorted(folder.rglob("*.*")), ["bees", "unused", "ants"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    return pa.table([images, [classes.index(file.parent.name) for file in files]], schema=schema)


def as_parquet(folder: Path, target: Path) -> str:
    from pyarrow import parquet

    table = table_of(folder)
    (target / "hf").mkdir(exist_ok=True)
    for part in range(2):
        parquet.write_table(table[part * 11 : part * 11 + 11], target / f"hf/rows-{part:05d}.parquet", row_group_size=4)
    return str(target / "hf")


def as_saved(folder: Path, target: Path) -> str:
    import pyarrow as pa

    table, place = table_of(folder), target / "saved"
    place.mkdir(exist_ok=True)
    file = str(place / "data-00000-of-00001.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=6)
    (place / "state.json").write_text("{}")
    return str(place)


def as_memory(folder: Path, target: Path) -> str:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*.*"):
        memory.pipe_file(f"/{target.name}/photos/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"memory://{target.name}/photos"


def in_memory(pack: Packer) -> Packer:
    def packed(folder: Path, target: Path) -> str:
        fsspec = pytest.importorskip("fsspec")
        data = pack(folder, target)
        for file in target.rglob("*.*"):
            if file.is_file():
                fsspec.filesystem("memory").pipe_file(f"{target.name}/{file.relative_to(target)}", file.read_bytes())
        return data.replace(str(target), f"memory://{target.name}")

    return packed


PACKERS: dict[str, Packer] = {
    "zip": as_zip, "stored zip": lambda folder, target: as_zip(folder, target, zipfile.ZIP_STORED), "tar": as_tar,
    "shards": as_shards, "parquet": as_parquet, "saved": as_saved, "memory": as_memory,
    "zip in memory": in_memory(as_zip), "shards in memory": in_memory(as_shards),
    "parquet in memory": in_memory(as_parquet),
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr(fingerprints, "_RACY_NS", 0)


@pytest.fixture(params=PACKERS)
def pack(request) -> Packer:
    return PACKERS[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", *NAMES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / f"packed-{tmp_path.name}").mkdir()
    return tmp_path / f"packed-{tmp_path.name}"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    seen: list[str] = []
    for kind in (Archive, Table, StoreSource):
        for each in (kind, *kind.__subclasses__()):
            if "read" in vars(each):
                def counted(self: Source, name: str, limits: Limits, original=each.read) -> bytes:
                    seen.append(name)
                    return original(self, name, limits)

                monkeypatch.setattr(each, "read", counted)
    return seen


def contents(data: str, cache_dir: Path, **settings) -> dict[bytes, str]:
    """Label of each image by its digest."""
    dataset = load_dataset(data, cache_dir=cache_dir, **settings)
    return {digest.tobytes(): dataset.classes[label]
            for digest, label in zip(dataset.digests, dataset.labels, strict=True)}


def test_it_holds_what_the_folder_holds_with_the_same_labels_and_splits(pack, folder, target, tmp_path):
    data = pack(folder, target)
    assert contents(data, tmp_path / "c") == contents(str(folder), tmp_path / "c")
    plain, packed = (load_dataset(each, cache_dir=tmp_path / "c") for each in (str(folder), data))
    order = [np.lexsort(each.digests.T) for each in (plain, packed)]
    assert plain.splits[order[0]].tolist() == packed.splits[order[1]].tolist()
    assert packed.classes == ("ants", "bees")
    assert not packed.skipped


def test_every_way_to_an_image_gives_its_bytes(pack, folder, target, tmp_path):
    data = pack(folder, target)
    dataset = load_dataset(data, cache_dir=tmp_path / "c")
    real = {file.read_bytes() for file in folder.rglob("*.png")}
    assert {dataset.read(index) for index in range(len(dataset))} == real
    assert {read_bytes(dataset.root / path) for path in dataset.paths} == real
    assert {read_bytes(str(place)) for place in list_images(data)} == real
    assert len(set(dataset.paths)) == len(NAMES)
    with pytest.raises(UnreadableImageError):
        read_bytes(f"{dataset.root / dataset.paths[0]}nothing")


def test_nothing_is_read_twice_and_a_changed_image_is_noticed(pack, folder, target, tmp_path, reads):
    data = pack(folder, target)
    before = contents(data, tmp_path / "c")
    assert len(reads) == len(NAMES)
    reads.clear()
    assert contents(data, tmp_path / "c") == before
    assert reads == []
    write_image(folder / NAMES[3], seed=5)
    after = contents(pack(folder, target), tmp_path / "c")
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1
    assert after == contents(str(folder), tmp_path / "c")


def test_a_broken_and_a_large_image_are_reasons(pack, folder, target, tmp_path):
    (folder / "ants/broken.png").write_bytes(b"no image at all")
    (folder / "ants/large.png").write_bytes(bytes(50_000))
    done = pipeline.extract(pack(folder, target), "pixels", cache_dir=tmp_path / "c", limits=Limits(max_bytes=40_000))
    with done.open() as cache:
        assert len(cache) == len(NAMES)
        reasons = sorted(reason for _, reason in cache.skipped)
    assert len(reasons) == 2
    assert "more than the limit of 40,000" in reasons[0] and "not an image of a known format" in reasons[1]


def test_rows_are_the_folders_bit_for_bit_and_shared_with_it(pack, folder, target, tmp_path):
    plain = pipeline.extract(str(folder), "pixels", cache_dir=tmp_path / "a")
    data = pack(folder, target)
    packed = pipeline.extract(data, "pixels", cache_dir=tmp_path / "b")
    assert (packed.computed, packed.rows) == (len(NAMES), len(NAMES))
    with plain.open() as first, packed.open() as second:
        rows = [{digest.tobytes(): row.tobytes() for digest, row in zip(each.digests, each.read_rows(), strict=True)}
                for each in (first, second)]  # fmt: skip
    assert rows[0] == rows[1]
    assert pipeline.extract(data, "pixels", cache_dir=tmp_path / "a").computed == 0


@pytest.mark.parametrize("kind", ["zip", "parquet", "memory"])
def test_every_command_takes_it(kind, folder, target, tmp_path, capsys):
    data, common = PACKERS[kind](folder, target), ["--cache-dir", str(tmp_path / "c")]
    chosen, runs = ["--data", data, "--backbone", "pixels"], ["--runs-dir", str(tmp_path / "r")]
    assert main(["extract", *chosen, *common]) == 0
    assert main(["train-head", *chosen, *common, *runs, "--head", "nearest-centroid", "--name", "run"]) == 0
    assert main(["report", *common, *runs, "--out", str(tmp_path / "page.html")]) == 0
    assert main(["audit", *chosen, *common, *runs, "--sheets", str(tmp_path / "sheets")]) == 0
    assert main(["cache", "verify", "--recompute", "5", *common]) == 0
    assert "5 images through the backbone again" in capsys.readouterr().out
    assert main(["predict", data, *common, *runs, "--csv", str(tmp_path / "p.csv")]) == 0
    assert "20 images classified, 0 unreadable" in capsys.readouterr().out
    grey = base64.b64encode(jpeg(missing(56), 60)).decode()
    page = (tmp_path / "page.html").read_text()
    assert grey not in page and page.count("data:image/jpeg") >= len(NAMES)


KILLED = """
import os, sys
from pipeline.data import Dataset
original, reads = Dataset.read, []
def read(self, index):
    reads.append(index)
    if len(reads) > 40: os._exit(9)
    return original(self, index)
Dataset.read = read
import pipeline
pipeline.extract(sys.argv[1], "pixels", cache_dir=sys.argv[2], workers=0)
"""


def test_a_killed_run_goes_on_in_an_archive(target, tmp_path):
    folder = write_images(tmp_path / "photos", *(f"{label}/{number}.png" for label in "ab" for number in range(40)))
    data = as_zip(folder, target)
    killed = subprocess.run([sys.executable, "-c", KILLED, data, str(tmp_path / "c")], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr
    done = pipeline.extract(data, "pixels", cache_dir=tmp_path / "c")
    assert 0 < done.computed < 80 == done.rows
    with done.open() as cache, pipeline.extract(str(folder), "pixels", cache_dir=tmp_path / "d").open() as whole:
        assert np.array_equal(cache.read_rows(), whole.read_rows())


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_a_server_on_the_network(kind, folder, target, tmp_path):
    pytest.importorskip("aiohttp")
    data = shutil.copytree(folder, target / "photos") and str(target / "photos") if kind == "folder" \
        else PACKERS[kind](folder, target)  # fmt: skip
    with served(target, ranges=kind != "folder") as address:
        found = contents(data.replace(str(target), address), tmp_path / "c")
        assert found == contents(str(folder), tmp_path / "c")
        assert read_bytes(f"{address}/{'photos/' if kind == 'folder' else 'photos.zip/'}ants/1.png") if kind != \
            "parquet" else True  # fmt: skip


def test_a_server_without_ranges_is_read_from_a_copy(folder, target, tmp_path):
    pytest.importorskip("aiohttp")
    for number in range(4):  # past what fsspec reads at once
        (folder / f"ants/large{number}.png").write_bytes(np.random.default_rng(number).bytes(2_000_000))
    as_zip(folder, target)
    with served(target) as address:
        with pytest.raises(DataError, match="whole files only; put simplecache:: before the URL"):
            load_dataset(f"{address}/photos.zip", cache_dir=tmp_path / "c")
        assert contents(f"simplecache::{address}/photos.zip", tmp_path / "c") == contents(str(folder), tmp_path / "c")


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path):
    pytest.importorskip("aiohttp")
    for url in ("http://127.0.0.1:9/photos", "http://127.0.0.1:9/photos.zip"):
        with pytest.raises(DataError, match=r"Cannot|cannot"):
            load_dataset(url, cache_dir=tmp_path)
    with pytest.raises(DataError, match="No images are read from 'reference'"):
        load_dataset("reference://x", cache_dir=tmp_path)


def test_splits_inside_an_archive_and_in_the_names_of_tables(tmp_path, target):
    names = [f"{split}/{label}/{n}.png" for split in ("train", "val") for label in "ab" for n in range(3)]
    folder = write_images(tmp_path / "photos", *names)
    for data in (as_zip(folder, target), as_tar(folder, target)):
        dataset = load_dataset(data, cache_dir=tmp_path / "c")
        assert [len(dataset.select(split)) for split in ("train", "val")] == [6, 6]
        assert dataset.classes == ("a", "b")
    from pyarrow import parquet

    whole = write_images(tmp_path / "flat", *NAMES)
    for split in ("train", "test"):
        parquet.write_table(table_of(whole), target / f"{split}-00000-of-00001.parquet")
    dataset = load_dataset(str(target / "{train,test}-*.parquet"), cache_dir=tmp_path / "c")
    assert [len(dataset.select(split)) for split in ("train", "test")] == [20, 20]
    assert "1 classes have no image here and are left out: unused." in dataset.notes


# what archives may try


def hostile_zip(target: Path) -> Path:
    image = write_image(target / "good.png").read_bytes()
    with zipfile.ZipFile(target / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/good.png", "b/good.png", "../out.png", "/etc/abs.png", "a/../../up.png", "C:/drive.png",
                     "a\\..\\..\\back.png", "__MACOSX/a/._good.png", "a/.DS_Store"):  # fmt: skip
            archive.writestr(name, image)
        link = zipfile.ZipInfo("a/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("b/bomb.png", bytes(60_000_000))
    return target / "evil.zip"


def test_a_zip_file_with_the_backslashes_of_windows_has_its_folders(target, tmp_path):
    image = write_image(target / "good.png").read_bytes()
    with zipfile.ZipFile(target / "windows.zip", "w") as archive:
        for name in ("ants\\1.png", "bees\\sub\\2.png", "..\\out.png", "empty\\"):
            member = zipfile.ZipInfo("x")
            member.filename = name
            archive.writestr(member, image if name.endswith("png") else b"")
    dataset = load_dataset(str(target / "windows.zip"), cache_dir=tmp_path / "c")
    assert (dataset.paths, dataset.classes) == (["ants/1.png", "bees/sub/2.png"], ("ants", "bees"))
    assert dataset.read(1) == image and [reason for _, reason in dataset.skipped] == [
        "no plain name inside of the archive"]  # fmt: skip


def test_no_name_leads_out_of_an_archive_and_no_link_is_followed(target, tmp_path):
    dataset = load_dataset(str(hostile_zip(target)), cache_dir=tmp_path / "c", limits=Limits(max_bytes=10**6))
    assert dataset.paths == ["a/good.png", "b/good.png"]
    assert {reason for path, reason in dataset.skipped if ".." in path or "/etc" in path or "C:" in path} == {
        "no plain name inside of the archive"
    }
    assert ("a/link.png", "a link or a device") in dataset.skipped
    assert ("b/bomb.png", "60,000,000 bytes, more than the limit of 1,000,000") in dataset.skipped
    assert len(dataset.skipped) == 7


def test_a_bomb_that_lies_about_its_size_is_inflated_no_further_than_that(target):
    archive = hostile_zip(target)
    content = bytearray(archive.read_bytes())
    for at in (content.rfind(b"b/bomb.png") - 46 + 24, content.find(b"b/bomb.png") - 30 + 22):
        struct.pack_into("<L", content, at, 100)
    archive.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="damaged: its length or checksum"):
        read_bytes(f"{archive}/b/bomb.png", Limits(max_bytes=10**6))


def test_links_and_devices_in_a_tar_are_passed_over(target, tmp_path):
    image = write_image(target / "good.png").read_bytes()
    with tarfile.open(target / "evil.tar", "w") as archive:
        for label in "ab":
            add(archive, f"{label}/good.png", image)
        for name, kind in (("a/l.png", tarfile.SYMTYPE), ("a/h.png", tarfile.LNKTYPE), ("a/d.png", tarfile.CHRTYPE),
                           ("a/f.png", tarfile.FIFOTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        add(archive, "../up.png", image)
    dataset = load_dataset(str(target / "evil.tar"), cache_dir=tmp_path / "c")
    assert dataset.paths == ["a/good.png", "b/good.png"]
    assert len(dataset.skipped) == 5


def test_what_is_passed_over_is_told_whatever_folder_it_lies_in(target, tmp_path):
    image = write_image(target / "good.png").read_bytes()
    with tarfile.open(target / "deep.tar", "w") as archive:
        for name in ("photos/docs/readme.txt", "../up.png", "photos/a/x.gif", "photos/a/1.png", "photos/b/1.png"):
            add(archive, name, image)
    dataset = load_dataset(str(target / "deep.tar"), cache_dir=tmp_path / "c")
    assert dataset.classes == ("a", "b")
    assert sorted(path for path, _ in dataset.skipped) == ["../up.png", "photos/a/x.gif", "photos/docs/readme.txt"]


def test_a_csv_file_may_name_members_of_archives(folder, target, tmp_path):
    as_zip(folder, target)
    rows = [f"photos.zip/{name},{name[0]}" for name in NAMES]
    (target / "some.csv").write_text("\n".join(["path,label", *rows, "photos.zip/none.png,a"]))
    dataset = load_dataset(str(target / "some.csv"), cache_dir=tmp_path / "c")
    assert len(dataset) == len(NAMES)
    assert dataset.skipped == (("photos.zip/none.png", "there is no such member in the archive"),)


@pytest.mark.parametrize(("data", "hint"), [("http://localhost/x.zip", "remote"), ("x.parquet", "parquet")])
def test_a_missing_extra_is_one_line_that_names_it(data, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.parquet").write_bytes(b"PAR1")
    for library in ("fsspec", "fsspec.core", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"pip install 'image-feature-pipeline\[{hint}\]'"):
        load_dataset(data, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.parquet", "x.arrow"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 1000, b"PK\5\6" + bytes(18), b"PK\5\6" + b"\xff" * 18, b"PAR1PAR1"]
)
def test_rubbish_is_one_clear_error(name, content, target, tmp_path):
    (target / name).write_bytes(content)
    with pytest.raises(DataError, match=r"x\.\w+"):
        load_dataset(str(target / name), cache_dir=tmp_path / "c")


@pytest.mark.parametrize("pack", [as_zip, as_tar], ids=["zip", "tar"])
def test_every_truncation_and_many_flips_are_errors_or_reasons(pack, folder, target, tmp_path):
    archive = Path(pack(folder, target))
    sound = archive.read_bytes()
    real = {file.read_bytes() for file in folder.rglob("*.png")}
    rng = np.random.default_rng(0)
    for round_ in range(60):
        content = bytearray(sound)
        if round_ % 2:
            del content[rng.integers(len(content)) :]
        else:
            content[rng.integers(len(content))] ^= 0xFF
        archive.write_bytes(content)
        try:
            source = open_container(archive)
            for name, reason in source.entries():
                if not reason:
                    read = source.read(name, Limits())
                    assert read in real or archive.suffix == ".tar"
        except DataError:
            continue


def test_a_missing_shard_is_an_error_that_names_it(folder, target):
    as_shards(folder, target)
    (target / "shard-001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 files are missing, such as '.*shard-001.tar'"):
        expand(str(target / "shard-{000..002}.tar"))
    assert len(expand(str(target / "shard-*.tar"))) == 2
    assert len(expand(str(target / "shard-{000,002}.tar"))) == 2


def test_a_compressed_tar_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="Unpack it, or pack it again"):
        load_dataset("photos.tar.gz", cache_dir=tmp_path)


def test_no_row_of_a_table_makes_it_read_a_file_elsewhere(folder, target, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": file.read_bytes(), "path": ""} for file in sorted(folder.rglob("*.png"))]
    rows[3] = {"bytes": None, "path": str(folder / NAMES[3])}
    table = pa.table({"image": pa.array(rows, kind), "label": [str(n % 2) for n in range(20)]})
    parquet.write_table(table, target / "p.parquet")
    dataset = load_dataset(str(target / "p.parquet"), cache_dir=tmp_path / "c")
    assert [path for path, _ in dataset.skipped] == ["p.parquet/3"]
    assert "holds no bytes of an image" in dataset.skipped[0][1]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("many")
    with zipfile.ZipFile(place / "many.zip", "w") as archive:
        for number in range(40_000):
            archive.writestr(f"train/class-{number % 10}/a-name-of-the-usual-length-{number}.jpg", b"")
    with zipfile.ZipFile(place / "many.zip") as source, tarfile.open(place / "many.tar", "w") as archive:
        for name in source.namelist():
            add(archive, name, b"")
    yield place


MEASURE = """
import sys, tracemalloc
from pipeline.data.sources import open_container
import pipeline.data.sources.archives
tracemalloc.start()
source = open_container(sys.argv[1])
names = sum(len(name) + 49 for name, _ in source.entries())  # which a folder needs too
print((tracemalloc.get_traced_memory()[1] - names) / 40_000)
"""


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_member_takes_no_object_of_its_own(many, suffix):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(many / f"many{suffix}")], check=True, capture_output=True,
                          text=True, env={**os.environ})
    assert float(done.stdout) < 300
