"""Rows belong to content and spec; labels, splits and names are an overlay; broken images are data."""

from __future__ import annotations

import hashlib
import json

import h5py
import numpy as np
import pytest
from store_tools import SPEC, Listing, contents, digest, extract, listing, meta, network, place

from pipeline.core.errors import CacheError, UnknownNameError
from pipeline.store import CacheWriter, FeatureCache, Spec
from pipeline.store.row_index import OUTDATED_REASONS


def rows_of(path):
    with FeatureCache.open(path) as cache:
        return dict(zip(cache.paths, map(bytes, cache.read_rows()), strict=True))


def test_the_file_is_readable_with_bare_h5py(tmp_path):
    path, images = place(tmp_path), listing(40)
    extract(path, images, meta={"root": "/photos", "versions": {"torch": "2"}})
    assert path.parent.name == "photos"
    assert path.name == f"test-{SPEC.sha256[:12]}.h5"
    with h5py.File(path) as file:
        assert file["features"].shape == (40, 4) and file["features"].dtype == np.float32
        assert file["labels"][:].tolist() == images.labels and file["labels"].dtype == np.int64
        assert file["paths"][3] == b"images/00003.jpg" and file["paths"].asstr()[3] == "images/00003.jpg"
        assert file["splits"][:2].tolist() == [b"val", b"train"]
        assert np.array_equal(file["digests"][:], images.digests)
        assert file["skipped_paths"].shape == file["skipped_reasons"].shape == (0,)
        described = json.loads(file["meta"][()])
        for name, sha256 in described["sha256"].items():
            assert hashlib.sha256(file[name][()].tobytes()).hexdigest() == sha256
    assert described["format"] == 1 and described["classes"] == ["ant", "bee"] and described["root"] == "/photos"
    assert Spec(described["spec"]) == SPEC and described["spec_sha256"] == SPEC.sha256
    assert described["counts"] == {"rows": 40, "distinct": 40, "skipped": 0, "splits": {"val": 8, "train": 32}}
    assert described["versions"] == {"torch": "2"}


def test_second_run_computes_and_writes_nothing(tmp_path):
    path = place(tmp_path)
    first = extract(path, listing(70))
    before = path.stat()
    second = extract(path, listing(70))
    assert len(first.computed) == 70 and [len(block) for block in first.plan.blocks] == [32, 32, 6]
    assert second.computed == [] and second.plan.reused == 70
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_ten_more_photos_cost_ten_forward_passes(tmp_path):
    path = place(tmp_path)
    extract(path, listing(100))
    old = rows_of(path)
    more = Listing([*listing(100).contents, *listing(10, first=500).contents])
    run = extract(path, more)
    assert run.computed == listing(10, first=500).contents
    assert {name: row for name, row in rows_of(path).items() if name in old} == old


@pytest.mark.parametrize(
    "change",
    [
        {"paths": [f"elsewhere/{number}.jpg" for number in range(50)]},
        {"labels": [0] * 50},
        {"splits": ["test"] * 50},
        {"classes": ("insect",)},
        {"labels": [-1] * 50, "classes": (), "splits": ["none"] * 50},
    ],
    ids=["renamed", "relabelled", "resplit", "merged", "unlabelled"],
)
def test_changing_the_overlay_computes_nothing_and_is_stored(tmp_path, change):
    path, images = place(tmp_path), listing(50)
    extract(path, images)
    before = contents(path)["features"]
    changed = images.but(**change)
    assert extract(path, changed).computed == []
    assert contents(path)["features"] == before
    with FeatureCache.open(path) as cache:
        assert (cache.paths, cache.labels.tolist(), cache.splits.tolist(), cache.classes) == (
            changed.paths, changed.labels, changed.splits, changed.classes,
        )  # fmt: skip


def test_deleting_and_shuffling_images_keeps_each_row_with_its_image(tmp_path):
    path, images = place(tmp_path), listing(90)
    extract(path, images)
    old = rows_of(path)
    order = np.random.default_rng(0).permutation(90)[:60]
    kept = Listing([images.contents[at] for at in order], [images.paths[at] for at in order])
    assert extract(path, kept).computed == []
    assert rows_of(path) == {name: old[name] for name in kept.paths}


def test_a_changed_image_is_never_served_from_the_cache(tmp_path):
    path, images = place(tmp_path), listing(40)
    extract(path, images)
    edited = images.but(contents=[*images.contents[:7], "edited", *images.contents[8:]])
    assert extract(path, edited).computed == ["edited"]
    with FeatureCache.open(path) as cache:
        assert np.array_equal(cache.read_rows([7]), network(digest("edited")[None]))


def test_duplicates_share_a_row_and_are_counted(tmp_path):
    path = place(tmp_path)
    run = extract(path, Listing(["a", "b", "a", "a", "c"]))
    assert run.computed == ["a", "b", "c"] and run.plan.duplicates == 2
    with FeatureCache.open(path) as cache:
        rows = cache.read_rows()
    assert len(rows) == 5 and np.array_equal(rows[0], rows[2]) and np.array_equal(rows[0], rows[3])
    assert not np.array_equal(rows[0], rows[1])


def test_a_failed_image_is_a_reason_and_never_a_row(tmp_path):
    path = place(tmp_path)
    images = Listing(["a", "broken 1", "b", "broken 2", "c"])
    extract(path, images, skipped=[("aaa.txt", "a text file\nof two lines")])
    with FeatureCache.open(path) as cache:
        assert cache.paths == ["images/00000.jpg", "images/00002.jpg", "images/00004.jpg"]
        assert cache.skipped == [
            ("aaa.txt", "a text file of two lines"),
            ("images/00001.jpg", "not an image"),
            ("images/00003.jpg", "not an image"),
        ]
        good = images.digests[[0, 2, 4]]
        assert np.array_equal(cache.digests, good) and np.array_equal(cache.read_rows(), network(good))


def test_a_failure_is_remembered_with_the_content_until_a_retry_is_asked_for(tmp_path):
    path, images = place(tmp_path), Listing(["a", "broken", "b"])
    extract(path, images)
    again = extract(path, images.but(paths=["x", "y", "z"]))
    assert again.computed == [] and again.plan.known_failures == 1
    with FeatureCache.open(path) as cache:
        assert cache.skipped == [("y", "not an image")]
    assert extract(path, images, retry_failed=True).computed == ["broken"]
    assert extract(path, images.but(contents=["a", "mended", "b"])).computed == ["mended"]


def test_a_failure_that_may_pass_is_tried_again_by_the_next_run(tmp_path):
    path, images = place(tmp_path), listing(3)
    with CacheWriter.open(path, SPEC) as writer:
        writer.plan(images.digests)
        writer.commit(0, network(images.digests[[0, 2]]), {1: "Permission denied"}, passing=[1])
        with writer.finish(paths=images.paths, labels=images.labels, splits=np.array(images.splits)) as cache:
            assert cache.skipped == [("images/00001.jpg", "Permission denied")]
    assert extract(path, images).computed == ["image 1"]


def test_a_row_is_worth_more_than_a_neighbours_failure(tmp_path):
    with CacheWriter.open(place(tmp_path, "one"), SPEC) as writer:
        writer.plan(listing(2).digests)
        writer.commit(0, network(listing(2).digests[1:]), {0: "larger than was allowed"})
        writer.finish(paths=["a", "b"], labels=[0, 1], splits=np.array(["train"] * 2)).close()
    images = Listing([*listing(2).contents, "new"])
    extract(place(tmp_path, "two"), images, siblings=[])
    more = Listing([*images.contents, "newer"])
    assert extract(place(tmp_path, "two"), more).plan.known_failures == 0
    with FeatureCache.open(place(tmp_path, "two")) as cache:
        assert len(cache) == 4 and cache.skipped == []


def test_what_an_earlier_version_could_not_read_is_tried_again(tmp_path):
    for reason, again in (("truncated", 0), (next(iter(OUTDATED_REASONS)), 1)):
        path, images = place(tmp_path / str(again)), listing(3)
        with CacheWriter.open(path, SPEC) as writer:
            writer.plan(images.digests)
            writer.commit(0, network(images.digests[:2]), {2: reason})
            writer.finish(paths=images.paths, labels=images.labels, splits=images.splits,
                          classes=images.classes).close()
        assert len(extract(path, images).computed) == again


def test_a_block_of_failures_needs_no_rows_of_any_shape(tmp_path):
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        blocks = writer.plan(listing(40).digests).blocks
        writer.commit(0, np.empty(0), dict.fromkeys(blocks[0].tolist(), "broken"))
        writer.commit(1, network(listing(40).digests[blocks[1]]))
        with writer.finish(paths=listing(40).paths, labels=[0] * 40, splits=np.array(["train"] * 40)) as cache:
            assert cache.shape == (8, 4) and len(cache.skipped) == 32


def test_images_that_all_fail_make_a_file_without_rows(tmp_path):
    path = place(tmp_path)
    extract(path, Listing(["broken 1", "broken 2"]))
    with FeatureCache.open(path) as cache:
        assert len(cache) == 0 and len(cache.skipped) == 2 and cache.read_rows().shape[0] == 0
    assert extract(path, Listing(["broken 1", "a"])).computed == ["a"]


def test_a_photo_in_two_data_sets_is_computed_once(tmp_path):
    extract(place(tmp_path, "one"), listing(50))
    before = rows_of(place(tmp_path, "one"))
    run = extract(place(tmp_path, "two"), listing(50, first=40))
    assert run.computed == listing(40, first=50).contents and run.plan.reused == 10
    after = rows_of(place(tmp_path, "two"))
    assert after["images/00000.jpg"] == before["images/00040.jpg"]


def test_two_folders_of_one_name_do_not_take_each_others_rows_away(tmp_path):
    path, (one, two) = place(tmp_path / "cache"), (tmp_path / "1", tmp_path / "2")
    for folder in (one, two):
        folder.mkdir()
    mine, yours = listing(40), listing(40, first=30)
    assert len(extract(path, mine, meta={"root": str(one)}).computed) == 40
    assert len(extract(path, yours, meta={"root": str(two)}).computed) == 30
    for _ in range(2):
        assert extract(path, mine, meta={"root": str(one)}).computed == []
        assert extract(path, yours, meta={"root": str(two)}).computed == []
    assert meta(path)["root"] == str(two)
    assert len(list(path.parent.glob("*.h5"))) == 2


def test_a_folder_that_moved_leaves_no_second_file_behind(tmp_path):
    path, old = place(tmp_path / "cache"), tmp_path / "old"
    extract(path, listing(40), meta={"root": str(old)})
    assert extract(path, listing(30), meta={"root": str(tmp_path)}).computed == []
    assert list(path.parent.glob("*.h5")) == [path]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_views_are_stored_and_read_one_by_one(tmp_path, dtype):
    path, images = place(tmp_path), listing(50)
    rows = np.random.default_rng(0).normal(size=(50, 3, 8)).astype(dtype)
    with CacheWriter.open(path, SPEC) as writer:
        for number, positions in enumerate(writer.plan(images.digests).blocks):
            writer.commit(number, rows[positions])
        cache = writer.finish(paths=images.paths, labels=images.labels, splits=np.array(images.splits))
    with cache:
        assert cache.shape == (50, 3, 8) and cache.dtype == dtype
        X, y = cache.split("train", view=2)
        assert np.array_equal(X, rows[cache.indices("train"), 2].astype(np.float32)) and X.dtype == np.float32
        assert y.tolist() == [
            label for label, split in zip(images.labels, images.splits, strict=True) if split == "train"
        ]
        assert cache.split("val")[0].shape == (10, 3, 8)
        with pytest.raises(CacheError, match=r"has no view 3: it holds 3"):
            cache.split("train", view=3)


def test_labels_are_asked_for_where_unlabelled_images_are_wanted(tmp_path):
    path = place(tmp_path)
    extract(path, listing(10).but(labels=[-1] * 4 + [1] * 6, splits=["train"] * 10))
    with FeatureCache.open(path) as cache:
        assert cache.split("train")[1].tolist() == [1] * 6
        assert cache.split("train", unlabelled=True)[1].tolist() == [-1] * 4 + [1] * 6
        assert len(cache.split("test")[0]) == 0


def test_rows_can_be_read_in_any_order_and_streamed_in_the_files(tmp_path):
    path, images = place(tmp_path), listing(300)
    extract(path, images)
    with FeatureCache.open(path) as cache:
        every = cache.read_rows()
    wanted = np.array([299, 3, 3, 150, 0])
    with FeatureCache.open(path) as cache:
        assert np.array_equal(cache.read_rows(wanted), every[wanted])
        assert np.array_equal(cache.read_rows(wanted), every[wanted])  # now from checked blocks
        assert cache.read_rows(np.empty(0, np.int64)).shape == (0, 4)
        for split in (None, "val"):
            positions, rows = zip(*cache.stream(100, split=split), strict=True)
            expected = np.arange(300) if split is None else cache.indices("val")
            assert np.array_equal(np.concatenate(positions), expected)
            assert np.array_equal(np.concatenate(rows), every[expected])


def test_opening_for_the_metadata_reads_no_features(tmp_path, monkeypatch):
    path = place(tmp_path)
    extract(path, listing(50))
    read = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: read.append(self.name) or original(self, key))
    with FeatureCache.open(path) as cache:
        assert cache.shape == (50, 4) and cache.classes == ("ant", "bee") and "32" not in cache.skipped
        assert "photos" in repr(cache) and "(50, 4) float32" in repr(cache)
    assert "/meta" in read and "/features" not in read


def test_any_file_name_comes_back(tmp_path):
    path = place(tmp_path)
    names = ["with\nnewline.jpg", "not utf-8 \udcff\udcfe.jpg", "ümlaut/花.jpg", " blanks .jpg ", "x" * 300 + ".jpg"]
    extract(path, Listing(list("abcde"), names), skipped=[("\udcff.txt", "text")])
    with FeatureCache.open(path) as cache:
        assert cache.paths == names and cache.skipped == [("\udcff.txt", "text")]


@pytest.mark.parametrize(
    ("rows", "failures", "message"),
    [
        (np.zeros((3, 4), np.float32), {}, "3 rows for 2 images"),
        (np.zeros((2, 4), np.float32), {0: "x"}, "2 rows for 1 images"),
        (np.zeros((1, 4), np.float32), {7: "x"}, "1 rows for 2 images"),
        (np.zeros((2, 4), np.float64), {}, "float32 or float16"),
        (np.zeros(8, np.float32), {}, r"\(n, D\) or \(n, V, D\)"),
    ],
)
def test_rows_that_do_not_fit_their_block_are_refused(tmp_path, rows, failures, message):
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        writer.plan(listing(2).digests)
        with pytest.raises(ValueError, match=message):
            writer.commit(0, rows, failures)


def test_rows_with_nan_or_infinity_are_refused_with_their_number_and_what_to_try(tmp_path):
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        writer.plan(listing(2).digests)
        with pytest.raises(CacheError, match=r"of 1 of 2 images .* --precision float32"):
            writer.commit(0, np.array([[1, 2, 3, np.inf], [1, 2, 3, 4]], np.float32))


def test_rows_of_another_kind_under_the_same_spec_are_refused(tmp_path):
    extract(place(tmp_path), listing(3))
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        writer.plan(listing(5).digests)
        with pytest.raises(CacheError, match=r"holds float32 of shape \(4,\), but .* float32 of shape \(6,\)"):
            writer.commit(0, np.zeros((2, 6), np.float32))


def test_finishing_too_early_is_refused(tmp_path):
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        writer.plan(listing(2).digests)
        with pytest.raises(ValueError, match="1 blocks are not committed"):
            writer.finish(paths=["a", "b"], labels=[0, 0], splits=["train"] * 2)


def test_blocks_can_be_committed_from_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    images = listing(1000)
    extract(place(tmp_path, "one"), images)
    with CacheWriter.open(place(tmp_path, "two"), SPEC, siblings=[]) as writer:
        blocks = writer.plan(images.digests).blocks
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: writer.commit(n, network(images.digests[blocks[n]])), reversed(range(len(blocks)))))
        writer.finish(paths=images.paths, labels=images.labels, splits=np.array(images.splits), classes=images.classes)
    assert contents(place(tmp_path, "one")) == contents(place(tmp_path, "two"))


def test_a_split_that_cannot_be_is_an_error_and_an_empty_one_is_not(tmp_path):
    images = listing(10)
    extract(place(tmp_path), images)
    with FeatureCache.open(place(tmp_path)) as cache:
        assert [len(part) for part in cache.split("none")] == [0, 0]
        with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
            cache.split("tran")


def test_a_cache_is_open_in_bare_h5py_and_here_at_once_whichever_comes_first(tmp_path):
    extract(place(tmp_path), listing(3))
    with h5py.File(place(tmp_path)) as bare, FeatureCache.open(place(tmp_path)) as cache:
        assert np.array_equal(bare["features"][:], cache.read_rows())
    with FeatureCache.open(place(tmp_path)) as cache, h5py.File(place(tmp_path)) as bare:
        assert np.array_equal(bare["features"][:], cache.read_rows())
