"""Digests and the splits they decide: quick when nothing changed, and never stale."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import write_images

from pipeline.data import Limits
from pipeline.data import digests as module
from pipeline.data import files as fingerprints
from pipeline.data.digests import digest_files, fraction

NAMES = [f"{number}.png" for number in range(30)]


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    """Make the time short after which a file's times are trusted, so that tests need not wait for two seconds."""
    monkeypatch.setattr(fingerprints, "_RACY_NS", 10**7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of files whose times are to be trusted."""
    write_images(tmp_path / "root", *NAMES)
    time.sleep(0.02)
    return tmp_path / "root"


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Return a list that gathers the names of the files that are really read."""
    seen: list[str] = []

    def counted(path: str, limits: Limits, original=module.hash_file):
        seen.append(Path(path).name)
        return original(path, limits)

    monkeypatch.setattr(module, "hash_file", counted)
    return seen


def expected(root: Path, names: list[str]) -> list[bytes]:
    return [hashlib.sha256((root / name).read_bytes()).digest()[:16] for name in names]


def digest(root: Path, names: list[str] = NAMES, **settings) -> list[bytes]:
    digests, failures = digest_files(root, names, memo=root.parent / "memo.sqlite", **settings)
    assert not failures
    return [row.tobytes() for row in digests]


def test_a_digest_is_the_first_half_of_the_contents_sha256(root):
    assert digest(root) == expected(root, NAMES)


def test_unchanged_files_are_not_read_again_and_rehash_reads_them_all(root, reads):
    digest(root)
    reads.clear()
    assert digest(root) == expected(root, NAMES)
    assert reads == []
    digest(root, rehash=True)
    assert sorted(reads) == sorted(NAMES)


@pytest.mark.parametrize("change", ["content", "same size and mtime", "replaced by rename"])
def test_a_changed_file_is_read_again_however_it_was_changed(root, reads, change):
    digest(root)
    reads.clear()
    file = root / NAMES[3]
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if change == "content":
        file.write_bytes(bytes(content) + b"more")
    elif change == "same size and mtime":
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        (root / "new").write_bytes(content)
        os.utime(root / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (root / "new").rename(file)
    assert digest(root) == expected(root, NAMES)
    assert reads == [NAMES[3]]


def test_a_file_just_written_is_not_trusted_to_stay_as_its_times_say(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(fingerprints, "_RACY_NS", 2 * 10**9)
    write_images(tmp_path / "root", *NAMES[:2])
    digest(tmp_path / "root", NAMES[:2])
    future = time.time() + 3600
    os.utime(tmp_path / "root" / NAMES[0], (future, future))
    reads.clear()
    digest(tmp_path / "root", NAMES[:2])
    assert sorted(reads) == NAMES[:2]
    with sqlite3.connect(tmp_path / "memo.sqlite") as memo:
        assert memo.execute("SELECT count(*) FROM digests_v1").fetchone() == (0,)


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "folder in its place"])
def test_a_damaged_memory_is_begun_anew(root, reads, damage):
    digest(root)
    memo = root.parent / "memo.sqlite"
    if damage == "garbage":
        memo.write_bytes(b"garbage" * 1000)
    elif damage == "empty":
        memo.write_bytes(b"")
    elif damage == "truncated":
        memo.write_bytes(memo.read_bytes()[:-5000])
    else:
        memo.unlink()
        memo.mkdir()
    assert digest(root) == expected(root, NAMES)
    reads.clear()
    assert digest(root) == expected(root, NAMES)
    assert len(reads) == (len(NAMES) if damage == "folder in its place" else 0)


def test_no_flipped_byte_of_the_memory_gives_a_wrong_digest(root):
    names = NAMES[:2]
    truth = digest(root, names)
    memo = root.parent / "memo.sqlite"
    sound = memo.read_bytes()
    used = [place for place, byte in enumerate(sound) if byte]
    for place in used:
        memo.write_bytes(sound[:place] + bytes([sound[place] ^ 0x21]) + sound[place + 1 :])
        assert digest(root, names) == truth, place
        assert digest(root, names) == truth, place


def hash_often(root: Path) -> bool:
    return all(digest(root) == expected(root, NAMES) for _ in range(15))


def test_several_processes_may_share_one_memory(root):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.map(hash_often, [root] * 3))


def test_a_memory_that_another_process_holds_is_waited_for_or_done_without(root, monkeypatch):
    digest(root)
    original = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, timeout=0: original(*args, timeout=0.05))
    with original(root.parent / "memo.sqlite") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert digest(root) == expected(root, NAMES)


def test_progress_is_told_of_every_file(root):
    class Bar(list):
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731
        update = list.append

    bars = []

    def progress(total, desc, unit):
        assert (total, desc, unit) == (30, "Hashing", "file")
        bars.append(Bar())
        return bars[-1]

    digest(root, progress=progress)
    assert sum(bars[0]) == 30


def test_missing_and_oversized_files_are_failures_with_a_reason(root):
    (root / NAMES[1]).write_bytes(b"x" * 3000)
    (root / NAMES[2]).unlink()
    _, failures = digest_files(root, NAMES, memo=root.parent / "m.sqlite", limits=Limits(max_bytes=2000))
    assert failures == {
        1: "3,000 bytes, more than the limit of 2,000",
        2: "cannot be opened: No such file or directory",
    }


@given(st.binary(min_size=16, max_size=16))
def test_a_digest_as_a_fraction_is_its_leading_number(content):
    value = fraction(np.frombuffer(content, np.uint8)[None])[0]
    assert value == int.from_bytes(content[:8], "big") / 2**64
