"""Caches are listed with their state, the nearest is found, and only what was asked for is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_tools import SPEC, Listing, extract, listing, network, place

from pipeline.core.errors import BusyError
from pipeline.store import CacheWriter, Spec, cache_path, hold, list_caches, nearest, remove, superseded, unused
from pipeline.store.spec import ABSENT

OTHER = Spec({**SPEC.fields, "weights": "4567"})


def test_the_listing_tells_each_state(tmp_path):
    extract(place(tmp_path, "a"), listing(40))
    extract(place(tmp_path, "a"), listing(40), spec=SPEC)
    with CacheWriter.open(place(tmp_path, "b"), SPEC, siblings=[]) as writer:
        plan = writer.plan(listing(40).digests)
        writer.commit(0, network(listing(40).digests[plan.blocks[0]]))
    place(tmp_path, "b", OTHER).write_bytes(place(tmp_path, "a").read_bytes())
    place(tmp_path, "c").parent.mkdir()
    place(tmp_path, "c").write_bytes(b"nothing")
    extract(place(tmp_path, "c"), listing(3))
    (tmp_path / "c" / "notes.txt").write_text("mine")
    (tmp_path / "digests.sqlite").write_text("another room's")
    entries = list_caches(tmp_path)
    assert [(entry.dataset, entry.backbone, entry.spec, entry.rows, entry.views, entry.state) for entry in entries] == [
        ("a", "test", SPEC.short, 40, 1, "complete"),
        ("b", "test", SPEC.short, 32, 0, "partial"),
        ("b", "test", OTHER.short, 0, 0, "stale"),
        ("c", "test", SPEC.short, 3, 1, "complete"),
        ("c", "test", SPEC.short, 0, 0, "corrupt"),
    ]
    assert all(entry.bytes > 0 and 0 <= entry.age < 60 for entry in entries)
    assert list_caches(tmp_path / "nowhere") == []


def test_removing_takes_what_was_named_and_keeps_the_rest(tmp_path):
    extract(place(tmp_path), listing(5))
    extract(place(tmp_path, spec=OTHER), listing(5), spec=OTHER)
    with CacheWriter.open(place(tmp_path), SPEC) as writer:
        writer.plan(listing(50).digests)
    entries = {(entry.spec, entry.state): entry for entry in list_caches(tmp_path)}
    assert len(entries) == 3
    assert remove(entries[SPEC.short, "partial"]) > 0
    assert remove(entries[OTHER.short, "complete"]) > 0
    assert [entry.path for entry in list_caches(tmp_path)] == [place(tmp_path)]


def test_what_is_being_written_is_not_removed(tmp_path):
    extract(place(tmp_path), listing(5))
    (entry,) = list_caches(tmp_path)
    with CacheWriter.open(place(tmp_path), SPEC), pytest.raises(BusyError, match="Another process is writing"):
        remove(entry)
    assert entry.path.exists()


def test_keep_newest_and_unused_choose_what_their_names_say(tmp_path):
    third = Spec({**SPEC.fields, "weights": "89"})
    for age, (dataset, spec) in enumerate([("a", third), ("a", OTHER), ("a", SPEC), ("b", OTHER)]):
        path = place(tmp_path, dataset, spec)
        extract(path, listing(3), spec=spec)
        os.utime(path, (1e9 - age, 1e9 - age))
    entries = list_caches(tmp_path)
    assert {(entry.dataset, entry.spec) for entry in superseded(entries)} == {("a", OTHER.short), ("a", SPEC.short)}
    chosen = unused(entries, {("a", SPEC.sha256), ("b", OTHER.sha256)})
    assert {(entry.dataset, entry.spec) for entry in chosen} == {("a", third.short), ("a", OTHER.short)}


def test_the_nearest_cache_is_the_one_with_the_fewest_differences(tmp_path):
    far = Spec({**SPEC.fields, "weights": "4567", "layer": "conv1", "views": 2})
    for spec in (far, OTHER):
        extract(place(tmp_path, spec=spec), listing(3), spec=spec)
    assert nearest(tmp_path, "photos", SPEC) == (place(tmp_path, spec=OTHER), [("weights", "4567", "0123")])
    assert nearest(tmp_path, "others", SPEC) is None


FIELDS = [("weights", "1"), ("layer", "conv"), ("transform.resize", 9), ("transform.mean", [0.4]), ("more", None)]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=[field for field, _ in FIELDS])
def test_a_change_of_any_field_makes_another_file_and_is_named(tmp_path, field, value):
    extract(place(tmp_path), listing(3))
    changed = SPEC.fields
    name, *inner = field.split(".")
    if inner:
        changed[name][inner[0]] = value
    else:
        changed[name] = value
    other = Spec(changed)
    assert place(tmp_path, spec=other) != place(tmp_path)
    assert len(extract(place(tmp_path, spec=other), listing(3), spec=other).computed) == 3
    old = {"weights": "0123", "layer": "pooled", "transform.resize": 8, "transform.mean": [0.5], "more": ABSENT}[field]
    assert other.differences(SPEC) == [(field, old, value)]


def test_equal_specs_are_equal_however_they_are_written():
    one, two = Spec({"a": (1, 2), "b": {"c": 1.5, "d": None}}), Spec({"b": {"d": None, "c": 1.5}, "a": [1, 2]})
    assert one == two and hash(one) == hash(two) and one.sha256 == two.sha256 and one.differences(two) == []
    assert Spec({"a": 1}) != Spec({"a": 1.0}) and Spec({"a": 1}) != Spec({"a": True})
    assert one.short == one.sha256[:12] and one.short in repr(one)
    for bad in ({"a": float("nan")}, {"a": object()}, {"a": {1, 2}}):
        with pytest.raises((TypeError, ValueError)):
            Spec(bad)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("timm:vit_b.in1k", "timm_vit_b.in1k"), ("a/../../b", "a_.._.._b"), ("..", "_"), ("", "_"), ("x" * 300, "x" * 50)],
)
def test_names_become_safe_file_names(name, safe):
    path = cache_path(Path("cache"), name, name, SPEC)
    assert path == Path("cache") / safe / f"{safe}-{SPEC.short}.h5"


def test_a_lock_can_be_held_for_other_things_too(tmp_path):
    with (
        hold(tmp_path / "new" / ".lock", "the run 'first'"),
        pytest.raises(BusyError, match="writing the run 'first'"),
        hold(tmp_path / "new" / ".lock", "the run 'first'"),
    ):
        pass
    with hold(tmp_path / "new" / ".lock", "the run 'first'"):
        pass


def test_the_room_loads_neither_torch_nor_sklearn_and_h5py_only_when_used():
    code = (
        "import sys, pipeline.store; assert not {'h5py', 'numpy'} & set(sys.modules); "
        "from pipeline.store import *; assert 'h5py' in sys.modules; "
        "assert not {'torch', 'sklearn', 'torchvision', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_million_images_are_planned_quickly_and_in_little_memory(tmp_path):
    code = f"""
import resource, time, numpy as np
from pipeline.store import CacheWriter, Spec, cache_path
digests = np.random.default_rng(0).integers(0, 256, (1_000_000, 16), dtype=np.uint8)
digests[500_000:500_100] = digests[:100]
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
with CacheWriter.open(cache_path({str(tmp_path)!r}, "many", "test", Spec({{}})), Spec({{}})) as writer:
    plan = writer.plan(digests)
    assert plan.duplicates == 100 and len(plan.to_compute) == 999_900 and len(plan.blocks) == 977
print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 30 and megabytes < 400


def test_finishing_takes_little_memory_beside_the_listing(tmp_path):
    images, path = 100_000, cache_path(tmp_path, "many", "test", Spec({}))
    digests = np.random.default_rng(0).integers(0, 256, (images, 16), dtype=np.uint8)
    labels, splits = np.arange(images) % 10, np.where(np.arange(images) % 5, "train", "val")
    paths = [f"class_{number % 10}/a-name-of-the-usual-length-{number:07}.jpg" for number in range(images)]
    for _ in ("new", "again, nothing new"):
        with CacheWriter.open(path, Spec({})) as writer:
            for number, block in enumerate(writer.plan(digests).blocks):
                writer.commit(number, np.ones((len(block), 2), np.float32))
            tracemalloc.start()
            writer.finish(paths=paths, labels=labels, splits=splits, classes=[str(n) for n in range(10)]).close()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 180 * images  # bytes; 130 measured, and 228 and more where what a listing says is copied whole


def test_a_data_set_can_shrink_to_nothing_and_grow_again(tmp_path):
    extract(place(tmp_path), listing(3))
    assert extract(place(tmp_path), Listing(["broken"])).computed == ["broken"]
    assert len(extract(place(tmp_path), listing(3)).computed) == 3


AS_ANOTHER_USER = """
import os, sys
from pipeline.store import list_caches
if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)
for entry in list_caches(sys.argv[1]): print(entry.dataset, entry.state, entry.problem)
"""


def test_what_this_user_may_not_read_is_told_and_hides_nothing_else(tmp_path):
    for name in ("closed", "file", "open"):
        extract(place(tmp_path, name), listing(3))
    place(tmp_path, "closed").parent.chmod(0)
    place(tmp_path, "file").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER_USER, str(tmp_path)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    place(tmp_path, "closed").parent.chmod(0o755)
    assert done.stdout.splitlines() == [
        "closed unreadable this user may not read the folder",
        "file unreadable this user may not read the file",
        "open complete ",
    ], done.stderr


def test_unreadable_caches_are_never_chosen_for_removal(tmp_path):
    extract(place(tmp_path), listing(3))
    newest = replace(list_caches(tmp_path)[0], state="unreadable")
    assert not unused([newest], set())
    assert not superseded([replace(newest, modified=0.0), replace(newest, state="complete")])
