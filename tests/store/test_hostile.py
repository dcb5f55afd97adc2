"""A cache file from somebody else is refused with a reason, and nothing is read from it."""

from __future__ import annotations

import json
import os
import shutil

import h5py
import numpy as np
import pytest
from store_tools import SPEC, Listing, extract, listing, meta, network, place

from pipeline.core.errors import CacheError
from pipeline.store import CacheWriter, FeatureCache, Spec, list_caches, verify_cache
from pipeline.store.layout import seal
from pipeline.store.paths import CachePlaces


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "cache.h5"
    extract(path, listing(64))
    return path


def again(file: h5py.File, name: str, **options):
    """Put a dataset in the place of one, with the same content unless told otherwise."""
    data = file[name][()]
    del file[name]
    return file.create_dataset(name, **{"data": data, **options})


def soft_link(file, folder):
    del file["features"]
    file["features"] = h5py.SoftLink("/labels")


def external_link(file, folder):
    extract(folder / "other.h5", listing(64))
    del file["features"]
    file["features"] = h5py.ExternalLink("other.h5", "/features")


def external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(64 * 4 * 4))
    del file["features"]
    file.create_dataset("features", (64, 4), "f4", external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])


def virtual(file, folder):
    extract(folder / "other.h5", listing(64))
    layout = h5py.VirtualLayout((64, 4), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "features", (64, 4))
    del file["features"]
    file.create_virtual_dataset("features", layout)


def absurd_shape(file, folder):
    del file["features"]
    file.create_dataset("features", (2**40, 2**20), "f4")


def absurd_chunked_shape(file, folder):
    del file["features"]
    file.create_dataset("features", (2**40, 4), "f4", chunks=(64, 4), fletcher32=True)


def missing_chunk(file, folder):
    data = file["features"][()]
    del file["features"]
    file.create_dataset("features", (64, 4), "f4", chunks=(32, 4), fletcher32=True)[:32] = data[:32]


def group(file, folder):
    del file["features"]
    file.create_group("features")


def named_type(file, folder):
    del file["features"]
    file["features"] = np.dtype("f4")


def texts_of_any_length(file, folder):
    data = [text.decode() for text in file["paths"]]
    del file["paths"]
    file.create_dataset("paths", data=data, dtype=h5py.string_dtype())


def references(file, folder):
    del file["labels"]
    file.create_dataset("labels", data=[file["features"].ref] * 64, dtype=h5py.ref_dtype)


def one_object_of_two_names(file, folder):
    again(file, "paths", data=np.array([b"x" * 2000] * 64), chunks=(64,))
    del file["splits"]
    file["splits"] = file["paths"]


HOSTILE = {
    one_object_of_two_names: "declares more bytes than it has",
    soft_link: "'features' is a link",
    external_link: "'features' is a link",
    external_storage: "'features' is stored in another file",
    virtual: "'features' is a virtual dataset",
    absurd_shape: "but only 0 bytes",
    absurd_chunked_shape: "lacks some of its chunks",
    missing_chunk: "lacks some of its chunks",
    group: "'features' is not a dataset",
    named_type: "'features' is not a dataset",
    texts_of_any_length: "'paths' has type object",
    references: "'labels' has type object",
    lambda file, folder: again(file, "features", compression="gzip", chunks=(64, 4)): "through a filter",
    lambda file, folder: again(file, "labels", compression="lzf", chunks=(64,)): "through a filter",
    lambda file, folder: again(file, "labels", shuffle=True, chunks=(64,)): "through a filter",
    lambda file, folder: again(file, "labels", scaleoffset=2, chunks=(64,)): "through a filter",
    lambda file, folder: file.create_dataset("extra", data=1): "unexpected names 'extra'",
    lambda file, folder: file.__setitem__("nowhere", h5py.SoftLink("/nothing")): "unexpected names 'nowhere'",
    lambda file, folder: [file.create_group(str(number)) for number in range(100)]: "it holds 108 objects",
    lambda file, folder: file.__delitem__("labels"): "missing or unexpected names 'labels'",
    lambda file, folder: again(file, "features", dtype="f8"): "'features' has type float64",
    lambda file, folder: again(file, "features", dtype=">f4"): "'features' has type >f4",
    lambda file, folder: again(file, "features", data=np.zeros(64, "f4")): r"shape \(64,\)",
    lambda file, folder: again(file, "labels", dtype="i4"): "'labels' has type int32",
    lambda file, folder: again(file, "digests", data=np.zeros((64, 15), "u1")): r"shape \(64, 15\)",
    lambda file, folder: again(file, "labels", data=np.zeros(63, "i8")): "lengths differ",
    lambda file, folder: again(file, "skipped_paths", data=np.array([b"x"])): "lengths differ",
    lambda file, folder: again(file, "meta", data=np.array([b"{}"])): r"'meta' has type \|S2 and shape \(1,\)",
}


@pytest.mark.parametrize(("change", "reason"), HOSTILE.items(), ids=map(str, range(len(HOSTILE))))
def test_whatever_a_cache_does_not_hold_is_refused_unread(cache, tmp_path, monkeypatch, change, reason):
    with h5py.File(cache, "r+") as file:
        change(file, tmp_path)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: pytest.fail(f"{self.name} was read"))
    with pytest.raises(CacheError, match=reason) as caught:
        FeatureCache.open(cache)
    assert "Nothing was read from it" in str(caught.value) and "\n" not in str(caught.value)
    assert verify_cache(cache) == [str(caught.value)]


META = {
    "no json": lambda sound: b"[" * 100_000,
    "not an object": lambda sound: b"[]",
    "not sealed": lambda sound: json.dumps(sound).replace('"ant"', '"elk"').encode(),
    "NaN": lambda sound: seal(sound)[:-1] + b',"more":NaN}',
    "no classes": lambda sound: seal({key: value for key, value in sound.items() if key != "classes"}),
    "classes of numbers": lambda sound: seal({**sound, "classes": [1, 2]}),
    "failures of no digest": lambda sound: seal({**sound, "failed": {"../../etc": "x"}}),
    "another spec's digest": lambda sound: seal({**sound, "spec": {"a": 1}}),
    "blocks of no rows": lambda sound: seal({**sound, "rows_per_block": 0}),
    "a block too few": lambda sound: seal({**sound, "block_sha256": {**sound["block_sha256"], "features": []}}),
    "no blocks": lambda sound: seal({**sound, "block_sha256": {}}),
}


@pytest.mark.parametrize("text", META.values(), ids=META)
def test_a_meta_that_does_not_hold_together_is_refused(cache, text):
    sound = {key: value for key, value in meta(cache).items() if key != "meta_sha256"}
    with h5py.File(cache, "r+") as file:
        again(file, "meta", data=np.array(text(sound)))
    with pytest.raises(CacheError, match="is damaged"):
        FeatureCache.open(cache)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.h5")  # opening it would wait for ever
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "text.h5").write_text("text")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    for name, reason in {
        "fifo": "not a regular file",
        "folder": "not a regular file",
        "text": "cannot be opened as HDF5",
        "loop": "There is no cache file",
        "absent": "There is no cache file",
    }.items():
        with pytest.raises(CacheError, match=reason):
            FeatureCache.open(tmp_path / f"{name}.h5")


def test_a_hostile_neighbour_lends_no_rows_and_does_no_harm(tmp_path):
    neighbour = place(tmp_path, "neighbour")
    extract(neighbour, listing(64))
    with h5py.File(neighbour, "r+") as file:
        external_storage(file, tmp_path)
    run = extract(place(tmp_path), Listing(listing(64).contents))
    assert len(run.computed) == 64
    assert [entry.state for entry in list_caches(tmp_path)] == ["corrupt", "complete"]


def test_a_plan_or_shard_from_somebody_else_is_computed_again(tmp_path):
    one, two = place(tmp_path, "one"), place(tmp_path, "two")
    with CacheWriter.open(one, SPEC) as writer:
        plan = writer.plan(listing(40).digests)
        writer.commit(0, network(listing(40).digests[plan.blocks[0]]))
    shutil.copytree(CachePlaces(one).partial, CachePlaces(two).partial)
    for path in CachePlaces(two).partial.iterdir():
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    os.mkfifo(CachePlaces(two).partial / "00000000-000007.shard")
    run = extract(two, listing(40))
    assert len(run.computed) == 40 and len(run.notes) == 2


def test_shards_of_another_spec_are_not_used_even_where_ours_lie(tmp_path):
    other = Spec({**SPEC.fields, "weights": "4567"})
    with CacheWriter.open(place(tmp_path, spec=other), other) as writer:
        plan = writer.plan(listing(40).digests)
        writer.commit(0, 2 * network(listing(40).digests[plan.blocks[0]]))
    shutil.copytree(CachePlaces(place(tmp_path, spec=other)).partial, CachePlaces(place(tmp_path)).partial)
    run = extract(place(tmp_path), listing(40))
    assert len(run.computed) == 40 and "belongs to another spec" in run.notes[0]
