"""A cache in parts reads like one file, costs only what changed, and is an error where a part is gone."""

from __future__ import annotations

import json
import os
import shutil
import threading

import h5py
import numpy as np
import pytest
from store_tools import SPEC, Listing, everything, extract, listing, meta, place

from pipeline.core.errors import CacheError
from pipeline.store import CacheWriter, FeatureCache, JoinedCache, Spec, list_caches, remove, survey, verify_cache
from pipeline.store.blocks import Digester
from pipeline.store.layout import PartError, seal
from pipeline.store.paths import CachePlaces

IMAGES = Listing([*listing(70).contents, "image 3", "broken", *listing(29, first=70).contents])


def parts_of(path) -> list:
    return CachePlaces(path).part_files()


def rows_of(path) -> list[int]:
    return [part["rows"] for part in meta(path)["parts"]]


@pytest.fixture
def parted(tmp_path):
    """A cache of 100 rows of 99 different images in four parts, and what it says."""
    path = place(tmp_path / "cache")
    extract(path, IMAGES, part_rows=30)
    return path, everything(path)


def flip(path, name: str = "features") -> None:
    """Change one bit of the last row, in place."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(file[name].id.get_num_chunks() - 1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 3] ^= 1
    path.write_bytes(content)


def test_it_reads_like_one_file(parted, tmp_path):
    path, said = parted
    extract(one := place(tmp_path / "one"), IMAGES)
    assert everything(one) == said and rows_of(path) == [25, 25, 25, 24] and not parts_of(one)
    wanted = np.array([99, 3, 3, 50, 0, 70])
    with FeatureCache.open(path) as cache, FeatureCache.open(one) as whole:
        assert (cache.shape, cache.dtype, len(cache), repr(cache)[-40:]) == (
            whole.shape, whole.dtype, len(whole), repr(whole)[-40:],
        )  # fmt: skip
        assert np.array_equal(cache.read_rows(wanted), whole.read_rows(wanted))
        for split in ("train", "val"):
            for mine, theirs in zip(cache.split(split), whole.split(split), strict=True):
                assert np.array_equal(mine, theirs)
            positions, rows = zip(*cache.stream(7, split=split), strict=True)
            assert np.array_equal(np.concatenate(positions), whole.indices(split))
            assert np.array_equal(np.concatenate(rows), whole.split(split)[0])
        assert cache.read_rows(np.empty(0, np.int64)).shape == (0, 4)
    assert verify_cache(path) == []


def test_a_part_is_an_ordinary_cache_file_readable_with_bare_h5py(parted):
    path, _ = parted
    with FeatureCache.open(path) as cache:
        rows = cache.read_rows(np.arange(25, 50))
    with h5py.File(parts_of(path)[1]) as part, h5py.File(path) as file:
        assert "features" not in file and file["labels"].shape == (100,)
        assert np.array_equal(file["places"][25:50], np.arange(25, 50))
        assert np.array_equal(part["features"][:], rows) and part["digests"].shape == (25, 16)
    assert verify_cache(parts_of(path)[1]) == []


def test_views_are_read_one_by_one_from_parts_too(tmp_path):
    path, images = place(tmp_path), listing(50)
    rows = np.random.default_rng(0).normal(size=(50, 3, 8)).astype(np.float16)
    with CacheWriter.open(path, SPEC, part_rows=20) as writer:
        for number, positions in enumerate(writer.plan(images.digests).blocks):
            writer.commit(number, rows[positions])
        cache = writer.finish(paths=images.paths, labels=images.labels, splits=np.array(images.splits))
    with cache:
        assert (cache.shape, cache.views, cache.dtype) == ((50, 3, 8), 3, np.float16)
        assert np.array_equal(cache.read_rows(view=2), rows[:, 2].astype(np.float32))
        assert np.array_equal(cache.split("val")[0], rows[cache.indices("val")].astype(np.float32))
        with pytest.raises(CacheError, match="has no view 3"):
            cache.read_rows(view=3)


def test_parts_are_joined_with_another_backbones_file(parted, tmp_path):
    path, _ = parted
    other = Spec({"architecture": "other"})
    extract(two := place(tmp_path / "cache", spec=other), IMAGES, spec=other)
    with JoinedCache([FeatureCache.open(path), FeatureCache.open(two)]) as joined:
        assert np.array_equal(joined.read_rows()[:, :4], FeatureCache.open(path).read_rows())
        assert joined.sources == (path, two)


def test_a_second_run_writes_nothing_and_remembers_failures(parted):
    path, said = parted
    before = [(part.name, part.stat().st_mtime_ns, part.stat().st_ino) for part in [path, *parts_of(path)]]
    run = extract(path, IMAGES)
    assert run.computed == [] and run.plan.known_failures == 1 and everything(path) == said
    assert before == [(part.name, part.stat().st_mtime_ns, part.stat().st_ino) for part in [path, *parts_of(path)]]


def test_new_images_cost_their_own_rows_and_the_large_parts_stay(parted):
    path, _ = parted
    old = {part.name: part.stat().st_ino for part in parts_of(path)}
    more = Listing([*listing(10, first=500).contents, *IMAGES.contents])
    assert extract(path, more).computed == listing(10, first=500).contents
    assert rows_of(path) == [25, 25, 25, 24, 10]
    assert {part.name: part.stat().st_ino for part in parts_of(path)}.items() > old.items()
    with FeatureCache.open(path) as cache:
        assert np.array_equal(cache.digests, more.but(contents=[c for c in more.contents if c != "broken"]).digests)
        assert cache.problems() == []
    last = Listing([*more.contents, *listing(10, first=600).contents])
    assert len(extract(path, last).computed) == 10
    assert rows_of(path) == [25, 25, 25, 24, 20]  # the small one was taken up into the new one


def test_relabelling_writes_no_part(parted):
    path, _ = parted
    before = {part.name: part.stat().st_ino for part in parts_of(path)}
    assert extract(path, IMAGES.but(labels=[1] * 101)).computed == []
    assert {part.name: part.stat().st_ino for part in parts_of(path)} == before
    with FeatureCache.open(path) as cache:
        assert set(cache.labels) == {1}


def test_parts_whose_images_are_gone_go_too(parted):
    path, _ = parted
    kept = Listing([*IMAGES.contents[:26], *IMAGES.contents[60:]])
    assert extract(path, kept).computed == []
    assert rows_of(path) == [25, 25, 24, 1] and len(parts_of(path)) == 4  # the third with rows that nobody wants
    with FeatureCache.open(path) as cache:
        assert cache.problems() == [] and len(cache) == 26 + 41 - 1


def test_another_size_is_taken_up_also_where_nothing_changed(parted, tmp_path):
    path, said = parted
    assert extract(path, IMAGES, part_rows=60).computed == [] and rows_of(path) == [50, 49]
    assert extract(path, IMAGES, part_rows=200).computed == [] and not CachePlaces(path).parts.exists()
    assert everything(path) == said and "parts" not in meta(path)
    assert extract(path, IMAGES, part_rows=33).computed == [] and rows_of(path) == [33, 33, 33]
    assert everything(path) == said


def test_a_missing_part_is_an_error_that_names_it_and_costs_only_its_rows(parted):
    path, said = parted
    lost = parts_of(path)[2]
    lost.unlink()
    with pytest.raises(PartError, match=rf"{lost} is missing, a part of {path} with 25 rows. Put it back, or run"):
        FeatureCache.open(path)
    (problem,) = verify_cache(path)
    assert "is missing" in problem
    assert [entry.state for entry in list_caches(path.parents[1])] == ["corrupt"]
    run = extract(path, IMAGES)
    assert run.computed == [*IMAGES.contents[50:70], *IMAGES.contents[71:77]] and "is missing" in run.notes[0]
    assert verify_cache(path) == [] and len(parts_of(path)) == 4 and not list(path.parent.glob("*.corrupt*"))
    with FeatureCache.open(path) as cache:
        assert cache.paths == said[3]


def test_a_missing_folder_names_the_first_part_and_their_number(parted):
    path, _ = parted
    shutil.move(CachePlaces(path).parts, path.parent / "elsewhere")
    with pytest.raises(PartError, match=r"000000.h5 is missing, .*\(4 of 4 parts are missing\)"):
        FeatureCache.open(path)


def test_a_damaged_part_costs_its_damaged_rows_alone(parted):
    path, _ = parted
    flip(parts_of(path)[1])
    assert verify_cache(path) == ["rows 0-24 of 'features' do not match their digest in the part 000001.h5"]
    with FeatureCache.open(path) as cache:
        cache.read_rows(np.arange(25))  # the others can still be read
        with pytest.raises(CacheError, match=r"000001.h5 is damaged: rows 0-24 of 'features'"):
            cache.split("train")
    run = extract(path, IMAGES)
    assert run.computed == IMAGES.contents[25:50] and "Its sound rows are kept" in run.notes[0]
    assert verify_cache(path) == []


def test_a_truncated_part_costs_its_own_rows(parted):
    path, _ = parted
    part = parts_of(path)[0]
    part.write_bytes(part.read_bytes()[:-1000])
    with pytest.raises(PartError, match=r"A part of .* cannot be read: .*000000.h5 cannot be opened"):
        FeatureCache.open(path)
    assert extract(path, IMAGES).computed == [*IMAGES.contents[:25], "broken"] and verify_cache(path) == []


@pytest.mark.parametrize("name", ["places", "labels", "paths", "digests"])
def test_a_damaged_list_costs_no_row(parted, name):
    path, said = parted
    flip(path, name)
    with pytest.raises(CacheError, match=f"of '{name}' are not what was written"):
        everything(path)
    run = extract(path, IMAGES, part_rows=30)
    assert set(run.computed) <= {"broken"} and "set aside" in run.notes[0]
    assert everything(path) == said


def test_a_list_that_was_lost_is_made_again_from_the_parts(parted):
    path, said = parted
    path.unlink()
    assert [(e.state, e.rows, e.problem) for e in list_caches(path.parents[1])] == [
        ("partial", 99, "parts without the file that lists them")
    ]
    assert extract(path, IMAGES, part_rows=30).computed == ["broken"] and everything(path) == said


def test_no_flipped_bit_of_the_list_or_a_part_is_ever_served(tmp_path):
    path = place(tmp_path)
    extract(path, Listing(["a", "b", "broken", "c"]), part_rows=2)
    said = everything(path)
    for file in (path, parts_of(path)[0]):
        original, noticed = file.read_bytes(), 0
        for at in range(0, len(original), 29):
            file.write_bytes(original[:at] + bytes([original[at] ^ (1 << at % 8)]) + original[at + 1 :])
            try:
                assert everything(path) == said, f"byte {at} of {file}"
            except CacheError:
                noticed += 1
        file.write_bytes(original)
        assert noticed > len(original) / 29 / 4


def test_the_listing_tells_one_cache_and_removing_it_removes_its_parts(parted, tmp_path):
    path, _ = parted
    (entry,) = list_caches(tmp_path / "cache")
    assert (entry.state, entry.rows, entry.path) == ("complete", 100, path)
    assert entry.bytes == sum(file.stat().st_size for file in [path, *parts_of(path)])
    (CachePlaces(path).parts / "notes.txt").write_text("mine")
    remove(entry)
    assert [file.name for file in CachePlaces(path).parts.iterdir()] == ["notes.txt"]


def test_parts_without_a_list_can_be_removed(parted, tmp_path):
    path, _ = parted
    path.unlink()
    (entry,) = list_caches(tmp_path / "cache")
    remove(entry)
    assert list_caches(tmp_path / "cache") == [] and not CachePlaces(path).parts.exists()


def test_two_folders_of_one_name_keep_their_parts(tmp_path):
    path, (one, two) = place(tmp_path / "cache"), (tmp_path / "1", tmp_path / "2")
    for folder in (one, two):
        folder.mkdir()
    mine, yours = listing(40), listing(40, first=30)
    assert len(extract(path, mine, meta={"root": str(one)}, part_rows=15).computed) == 40
    assert len(extract(path, yours, meta={"root": str(two)}).computed) == 30
    for _ in range(2):
        assert extract(path, mine, meta={"root": str(one)}).computed == []
        assert extract(path, yours, meta={"root": str(two)}).computed == []
    for entry in list_caches(tmp_path / "cache"):
        assert entry.state == "complete" and verify_cache(entry.path) == []
        remove(entry)
    assert not CachePlaces(path).parts.exists()


def test_a_neighbours_parts_lend_their_rows(parted, tmp_path):
    run = extract(place(tmp_path / "cache", "neighbour"), Listing([*IMAGES.contents[20:60], "new"]))
    assert run.computed == ["new"]
    assert survey(place(tmp_path / "cache", "third"), SPEC, IMAGES.digests).to_compute.tolist() == []


def test_room_is_asked_for_what_is_written_alone(parted):
    path, _ = parted
    with CacheWriter.open(path, SPEC) as writer:
        more = Listing([*IMAGES.contents, "new"])
        writer.plan(more.digests)
        assert writer._room_needed(1000) == 2 * 1000 + 102 * 300 + (1 << 20)
    found = survey(path, SPEC, more.digests)
    assert found.room(1000) == 3 * 1000 + 102 * 300 + (1 << 20)  # with the broken one


def test_a_reader_goes_on_while_parts_are_replaced_and_never_sees_half(tmp_path):
    path, images = place(tmp_path), listing(60)
    extract(path, images, part_rows=20)
    expected = {size: extract_and_say(tmp_path / str(size), size) for size in (60, 70)}
    seen, wrong, stop = set(), [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                with FeatureCache.open(path) as cache:
                    seen.add(len(cache))
                    if cache.read_rows().tobytes() != expected[len(cache)]:
                        wrong.append(len(cache))
            except CacheError as error:
                wrong.append(str(error))

    reader = threading.Thread(target=read)
    with FeatureCache.open(path) as old:
        reader.start()
        for rows in (9, 20, 100, 7, 100, 15):
            extract(path, listing(70 if rows < 20 else 60), part_rows=rows)
        stop.set()
        reader.join()
        assert old.read_rows().tobytes() == expected[60] and old.problems() == []
    assert not wrong and seen


def extract_and_say(folder, size: int) -> bytes:
    extract(place(folder), listing(60))
    extract(place(folder), listing(size))
    return everything(place(folder))[0]


def listed(path, change) -> None:
    """Change the meta of a cache file, with a digest that matches."""
    with h5py.File(path, "r+") as file:
        said = {name: value for name, value in json.loads(file["meta"][()]).items() if name != "meta_sha256"}
        change(said)
        text = seal(said)
        del file["meta"]
        file.create_dataset("meta", data=np.array(text, dtype=h5py.string_dtype("utf-8", len(text))))


HOSTILE = {
    "traversal": (lambda said: said["parts"][0].update(name="../../000000.h5"), "'../../000000.h5' is no name"),
    "absolute": (lambda said: said["parts"][0].update(name="/etc/passwd"), "'/etc/passwd' is no name of a part"),
    "other name": (lambda said: said["parts"][0].update(name="a.h5"), "'a.h5' is no name of a part"),
    "number": (lambda said: said["parts"][0].update(name=7), "7 is no name of a part"),
    "absurd rows": (lambda said: said["parts"][0].update(rows=2**60), "cannot have 1152921504606846976 rows"),
    "negative rows": (lambda said: said["parts"][0].update(rows=-1), "cannot have -1 rows"),
    "truth": (lambda said: said["parts"][0].update(rows=True), "cannot have True rows"),
    "other rows": (lambda said: said["parts"][0].update(rows=24), "is not the part that .* lists"),
    "other digest": (lambda said: said["parts"][0].update(meta_sha256="0" * 64), "is not the part that .* lists"),
    "no digest": (lambda said: said["parts"][0].update(meta_sha256="x"), "has no digest"),
    "another field": (lambda said: said["parts"][0].update(code="import os"), "list of parts is malformed"),
    "texts": (lambda said: said.update(parts=["000000.h5"]), "list of parts is malformed"),
    "none": (lambda said: said.update(parts=[]), "must list 1 to 1000 parts"),
    "many": (lambda said: said.update(parts=said["parts"] * 5000), "must list 1 to 1000 parts"),
    "nothing": (lambda said: said.pop("parts"), "must list 1 to 1000 parts"),
    "twice": (lambda said: said.update(parts=said["parts"][:1] * 2), "a part is listed twice"),
    "fewer": (lambda said: said["parts"].pop(), "asks for rows that its parts do not have"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_list_is_refused_with_its_reason_and_mended(parted, how):
    path, said = parted
    change, reason = HOSTILE[how]
    listed(path, change)
    with pytest.raises(CacheError, match=reason):
        everything(path)
    assert verify_cache(path)
    extract(path, IMAGES, part_rows=30)
    assert everything(path)[3:] == said[3:] and verify_cache(path) == []


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("what", ["a part", "a broken link", "the folder", "a pipe"])
def test_no_link_is_followed(parted, tmp_path, what):
    path, said = parted
    part, away = parts_of(path)[0], tmp_path / "away"
    if what == "the folder":
        part.parent.rename(away)
        part.parent.symlink_to(away)
    else:
        part.rename(away)
        os.mkfifo(part) if what == "a pipe" else part.symlink_to(away if what == "a part" else tmp_path / "no")
    with pytest.raises(PartError, match=r"link, which is not followed|not a regular file"):
        FeatureCache.open(path)
    (entry,) = list_caches(tmp_path / "cache")
    before = sorted(file.name for file in away.iterdir()) if away.is_dir() else away.exists()
    if what != "the folder":
        extract(path, IMAGES, part_rows=30)
        assert everything(path)[3:] == said[3:]
    remove(entry)
    assert before == (sorted(file.name for file in away.iterdir()) if away.is_dir() else away.exists())


def test_a_part_with_parts_of_its_own_is_refused(parted):
    path, _ = parted
    shutil.copy(path, parts_of(path)[0])
    with pytest.raises(PartError, match=r"A part of .* cannot be read"):
        FeatureCache.open(path)


def test_rows_of_two_images_swapped_in_the_list_are_found(parted):
    path, _ = parted
    with h5py.File(path, "r+") as file:
        places = file["places"][()]
        places[[4, 5]] = places[[5, 4]]
        file["places"][...] = places
        digester = Digester()
        digester.update(places)
    listed(path, lambda said: said["block_sha256"].update(places=digester.blocks))
    assert verify_cache(path) == ["2 images have another image's row"]


def test_another_specs_part_is_refused(parted, tmp_path):
    path, _ = parted
    other = Spec({"architecture": "other"})
    extract(two := place(tmp_path / "two", spec=other), IMAGES, spec=other, part_rows=30)
    shutil.copy(parts_of(two)[0], parts_of(path)[0])
    with pytest.raises(PartError, match="is not the part that"):
        FeatureCache.open(path)
    assert extract(path, IMAGES).computed == [*IMAGES.contents[:25], "broken"]


def test_killed_runs_leave_no_parts_behind(tmp_path):
    path = place(tmp_path)
    extract(path, listing(40), part_rows=15)
    for stray in ("000077.h5", ".000078.h5.tmp"):
        shutil.copy(parts_of(path)[0], CachePlaces(path).parts / stray)
    extract(path, listing(50))
    left = sorted(file.name for file in CachePlaces(path).parts.iterdir())
    assert left == sorted(part["name"] for part in meta(path)["parts"])
