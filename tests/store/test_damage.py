"""Damage is found, named by data set and rows, and costs only the rows that it hit."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from store_tools import SPEC, Listing, contents, everything, extract, listing, place

from pipeline.core.errors import CacheError
from pipeline.store import FeatureCache, Spec, verify_cache
from pipeline.store.layout import DATASETS, StaleCacheError, block_rows, chunk_rows, seal


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A cache of three images and a broken one, its bytes and what it says."""
    path = place(tmp_path_factory.mktemp("tiny"), spec=Spec({}))
    extract(path, Listing(["a", "b", "broken", "c"]), spec=Spec({}), skipped=[("x.txt", "text")])
    return path, path.read_bytes(), everything(path)


def wide(count: int = 256) -> tuple[Listing, object]:
    """Return a listing and the function that computes its rows, so wide that a block holds few images."""
    images = listing(count)
    return images, lambda digests: np.repeat(digests.astype(np.float32), 512, axis=1)


def extract_wide(path, images, network):
    """Bring a cache of wide rows up to date; return the contents computed and the notes."""
    from pipeline.store import CacheWriter

    with CacheWriter.open(path, SPEC) as writer:
        blocks = writer.plan(images.digests).blocks
        for number, positions in enumerate(blocks):
            writer.commit(number, network(images.digests[positions]))
        writer.finish(paths=images.paths, labels=images.labels, splits=np.array(images.splits)).close()
        return [images.contents[at] for block in blocks for at in block], writer.notes


def overwrite(path, name: str, row: int, change) -> None:
    """Change the bytes of the chunk that holds a row, in place, as a failing disk would."""
    with h5py.File(path) as file:
        dataset = file[name]
        index = row // dataset.chunks[0]
        chunk = dataset.id.get_chunk_info(index)
    content = bytearray(path.read_bytes())
    part = slice(chunk.byte_offset, chunk.byte_offset + chunk.size)
    content[part] = change(content[part])
    path.write_bytes(content)


def test_no_flipped_bit_is_ever_served(tiny, tmp_path):
    _, original, said = tiny
    path, noticed = tmp_path / "flipped.h5", 0
    for at in range(len(original)):
        path.write_bytes(original[:at] + bytes([original[at] ^ (1 << at % 8)]) + original[at + 1 :])
        try:
            assert everything(path) == said, f"byte {at}"
        except CacheError:
            noticed += 1
    assert noticed > len(original) / 2


def test_no_truncated_file_is_ever_served(tiny, tmp_path):
    _, original, _ = tiny
    path = tmp_path / "cut.h5"
    for length in range(len(original)):
        path.write_bytes(original[:length])
        with pytest.raises(CacheError):
            FeatureCache.open(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda chunk: bytes(len(chunk)),
        lambda chunk: chunk[:100] + bytes([chunk[100] ^ 1]) + chunk[101:],
        lambda chunk: chunk[8192:16384] + chunk[:8192] + chunk[16384:],
    ],
    ids=["zeroed with its checksum", "one bit", "rows swapped"],
)
def test_a_damaged_chunk_is_named_set_aside_and_alone_computed_again(tmp_path, change):
    path = place(tmp_path)
    images, network = wide()
    extract_wide(path, images, network)
    before = contents(path)
    overwrite(path, "features", 100, change)
    size = block_rows(256, 8192 * 4)
    first = 100 // size * size
    assert verify_cache(path) == [f"rows {first}-{first + size - 1} of 'features' do not match their digest"]
    with FeatureCache.open(path) as cache:
        cache.read_rows(np.arange(first))  # the sound part can still be read
        with pytest.raises(CacheError, match=rf"is damaged: rows {first}-{first + size - 1} of 'features'"):
            cache.split("train")
    damaged = path.read_bytes()
    computed, notes = extract_wide(path, images, network)
    assert computed == images.contents[first : first + size]
    assert "is damaged (rows" in notes[0] and notes[0].endswith(f"It was set aside as {path.name}.corrupt.")
    assert contents(path) == before
    assert path.with_name(path.name + ".corrupt").read_bytes() == damaged


def test_two_swapped_chunks_are_found_although_their_checksums_hold(tmp_path):
    path = place(tmp_path)
    images, network = wide()
    extract_wide(path, images, network)
    with h5py.File(path) as file:
        one, two = (file["features"].id.get_chunk_info(number) for number in (1, 2))
    content = bytearray(path.read_bytes())
    parts = [slice(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in (one, two)]
    content[parts[0]], content[parts[1]] = content[parts[1]], content[parts[0]]
    path.write_bytes(content)
    with h5py.File(path) as file:
        file["features"][:]  # HDF5 itself sees nothing
    assert len(verify_cache(path)) == 2


@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("skipped")])
def test_damage_beside_the_features_costs_no_row_but_where_digests_are_lost(tmp_path, name):
    path = place(tmp_path)
    images = listing(100)
    extract(path, images)
    before = contents(path)
    overwrite(path, name, 0, lambda chunk: bytes([chunk[0] ^ 1]) + chunk[1:])
    (problem,) = verify_cache(path)
    assert name in problem and "rows 0-99" in problem
    run = extract(path, images)
    assert len(run.computed) == (100 if name in ("features", "digests") else 0)
    assert {key: value for key, value in contents(path).items() if key != "features"} == {
        key: value for key, value in before.items() if key != "features"
    }


def test_lost_digests_cost_the_rows_of_their_block_alone(tmp_path):
    path = place(tmp_path)
    images, network = wide()
    extract_wide(path, images, network)
    overwrite(path, "digests", 100, lambda chunk: bytes(len(chunk)))
    size = block_rows(256, 8192 * 4)
    first = 100 // size * size
    assert extract_wide(path, images, network)[0] == images.contents[first : first + size]


def test_what_is_set_aside_is_never_overwritten(tmp_path):
    path = place(tmp_path)
    for _ in range(3):
        extract(path, listing(3))
        path.write_bytes(b"ruined")
    extract(path, listing(3))
    assert [aside.read_bytes() for aside in path.parent.glob("*.corrupt*")] == [b"ruined"] * 3


def test_an_interrupted_repair_still_finds_the_sound_rows(tmp_path):
    from pipeline.store import CacheWriter

    path = place(tmp_path)
    images, network = wide()
    extract_wide(path, images, network)
    overwrite(path, "features", 0, lambda chunk: bytes(len(chunk)))
    with CacheWriter.open(path, SPEC) as writer:
        writer.plan(images.digests)  # and then the power fails
    computed, notes = extract_wide(path, images, network)
    assert computed == images.contents[: block_rows(256, 8192 * 4)] and notes == []


def test_meta_cannot_be_edited_by_hand_unnoticed(tmp_path):
    path = place(tmp_path)
    extract(path, listing(3))
    with h5py.File(path, "r+") as file:
        text = bytes(file["meta"][()])
        file["meta"][()] = text.replace(b'"ant"', b'"elk"')
    with pytest.raises(CacheError, match="digest of its 'meta' does not match"):
        FeatureCache.open(path)


def test_a_file_under_another_specs_name_is_stale(tmp_path):
    other = Spec({**SPEC.fields, "weights": "4567"})
    extract(place(tmp_path), listing(3))
    path = place(tmp_path, spec=other)
    place(tmp_path).rename(path)
    with pytest.raises(StaleCacheError, match=f"was made with spec {SPEC.short}, not the {other.short} of its name"):
        FeatureCache.open(path)
    run = extract(path, listing(3), spec=other)
    assert len(run.computed) == 3 and "was made with spec" in run.notes[0]


def test_a_file_of_another_spec_is_refused_even_under_the_right_name(tmp_path):
    path = tmp_path / "mine.h5"
    extract(path, listing(3))
    other = Spec({**SPEC.fields, "transform": {"resize": 9, "mean": [0.5]}})
    with pytest.raises(StaleCacheError, match=r"another spec \(transform.resize: 8, not 9\)"):
        FeatureCache.open(path, spec=other)
    assert len(extract(path, listing(3), spec=other).computed) == 3


def test_another_format_version_is_stale(tmp_path):
    path = place(tmp_path)
    extract(path, listing(3))
    with h5py.File(path, "r+") as file:
        text = seal({"format": 2, "spec": {}})
        del file["meta"]
        file.create_dataset("meta", data=np.array(text, dtype=h5py.string_dtype("utf-8", len(text))))
    with pytest.raises(StaleCacheError, match="has format version 2, and this program reads 1"):
        FeatureCache.open(path)


@pytest.mark.parametrize("row_bytes", [2, 512, 5120, 100_352, 3_000_000])
@pytest.mark.parametrize("rows", [1, 397, 50_000, 1_000_000])
def test_blocks_are_whole_chunks_and_not_too_many(rows, row_bytes):
    size = block_rows(rows, row_bytes)
    assert size % chunk_rows(row_bytes) == 0
    assert -(-rows // size) <= 256 or size * row_bytes > 16_000_000
    assert size * row_bytes <= 32 * 1024 * 1024 or size == 1
    assert chunk_rows(row_bytes) == 1 or chunk_rows(row_bytes) * row_bytes <= 512 * 1024
