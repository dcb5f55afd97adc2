"""After a kill, a power cut or a full disk: nothing committed is lost, and the outcome is the uninterrupted one's."""

from __future__ import annotations

import os
import shutil
import signal
from random import Random

import numpy as np
import pytest
from store_faults import FullDisk, KilledDisk, Operation, QuickDisk, Recorder, StoppingDisk, Wreck, in_child
from store_tools import SPEC, Listing, Run, contents, differing, everything, extract, listing, meta, network, place

from pipeline.core.errors import BusyError, CacheError
from pipeline.store import CacheWriter, FeatureCache, verify_cache
from pipeline.store.disk import DiskFile
from pipeline.store.paths import CachePlaces

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IMAGES = Listing([*listing(40).contents, "broken", *listing(30, first=40).contents])  # three blocks
MORE = Listing([*listing(20, first=900).contents, *IMAGES.contents[10:], *listing(30, first=950).contents])


class Scenario:
    """A run that is to be interrupted, after another that was not, with what must come of it."""

    def __init__(self, folder, before: Listing | None, images: Listing, first: int | None = None, rows=None):
        self.before, self.images, self.folder = before, images, folder
        self.options = {"part_rows": rows}
        self.stride = 1 if rows is None else 6  # parts are files like any other: not after every write of each
        self.said = contents if rows is None else everything  # in how many parts a row lies may differ
        self.start, reference = folder / "start", folder / "reference"
        self.start.mkdir()
        if before:
            extract(place(self.start), before, part_rows=first)
        shutil.copytree(self.start, reference)
        self.to_compute = self.extract(place(reference)).computed
        self.expected = self.said(place(reference))
        self.old = self.said(place(self.start)) if before else None

    def extract(self, path, **options) -> Run:
        return extract(path, self.images, **self.options, **options)

    def fresh(self, name: str):
        shutil.copytree(self.start, self.folder / name)
        return place(self.folder / name)

    def check(self, path, committed) -> None:
        """Go on after the crash, and require the promised outcome."""
        if self.old and path.exists():
            assert everything(path) and self.said(path) in (self.old, self.expected)
        assert path.exists() or not self.old
        run = self.extract(path, disk=QuickDisk())
        lost = set(committed) & set(run.computed)
        assert not lost, f"{len(lost)} committed images were computed again"
        assert differing(self.said(path), self.expected) == []
        assert not CachePlaces(path).partial.exists()
        listed = [part["name"] for part in meta(path).get("parts", [])]
        assert sorted(part.name for part in place(path.parents[1]).with_suffix(".parts").glob("*")) == sorted(listed)


SCENARIOS = {
    "first run": (None, IMAGES),
    "ten more": (IMAGES, MORE),
    "new labels": (IMAGES, IMAGES.but(labels=[0] * 71)),
    "into parts": (IMAGES, MORE, None, 64),
    "more parts": (IMAGES, MORE, 40, 40),
}


@pytest.fixture(params=SCENARIOS)
def scenario(request, tmp_path):
    return Scenario(tmp_path, *SCENARIOS[request.param])


def record(scenario: Scenario, name: str = "recorded") -> Recorder:
    path = scenario.fresh(name)
    recorder = Recorder(scenario.folder / name)
    scenario.extract(path, disk=recorder)
    recorder.committed(scenario.to_compute)
    return recorder


def crash(scenario: Scenario, log: list[Operation], count: int, power: Random | None) -> None:
    """Crash after `count` operations, and check what comes of it."""
    wreck = Wreck(log, count, power)
    folder = scenario.folder / "wreck"
    shutil.rmtree(folder, ignore_errors=True)
    wreck.rebuild(folder)
    scenario.check(place(folder), wreck.committed)


def test_a_kill_after_any_operation_loses_nothing(scenario):
    recorder = record(scenario)
    for count in range(recorder.start, len(recorder.log) + 1, scenario.stride):
        crash(scenario, recorder.log, count, None)


def test_a_power_cut_after_any_operation_loses_nothing(scenario):
    recorder = record(scenario)
    for count in range(recorder.start, len(recorder.log) + 1, scenario.stride):
        crash(scenario, recorder.log, count, Random(count))


def violated(scenario: Scenario, log: list[Operation], start: int) -> bool:
    """Tell whether some power cut shows a promise broken; the cuts tried are those after which most is at stake."""
    commits = [at + 1 for at in range(start, len(log)) if log[at].kind == "committed"]
    for count in [*commits, *range(max(start, len(log) - 8), len(log))]:
        for seed in range(4):
            try:
                crash(scenario, log, count, Random(count * 1000 + seed))
            except (AssertionError, CacheError):
                return True
    return False


def test_every_fsync_is_needed(tmp_path):
    scenario = Scenario(tmp_path, None, IMAGES)
    recorder = record(scenario)
    syncs = [at for at in range(recorder.start, len(recorder.log)) if recorder.log[at].kind.startswith("sync")]
    idle = [at for at in syncs if not violated(scenario, recorder.log[:at] + recorder.log[at + 1 :], at)]
    # a lost plan is made again, and here, with so few images, with the same blocks: see the next test
    plan = next(at for at, operation in enumerate(recorder.log) if operation.kind == "sync")
    assert idle == [plan, syncs[syncs.index(plan) + 1]]


def test_the_plan_is_fsynced_because_its_loss_would_form_other_blocks(tmp_path):
    scenario = Scenario(tmp_path, None, listing(2112))
    recorder = record(scenario)
    first_sync = next(at for at, operation in enumerate(recorder.log) if operation.kind == "sync")
    two_commits = [at for at, operation in enumerate(recorder.log) if operation.kind == "committed"][1] + 1
    crash(scenario, recorder.log, two_commits, Random(0))
    with pytest.raises(AssertionError, match="features"):
        crash(scenario, recorder.log[:first_sync] + recorder.log[first_sync + 1 :], two_commits - 1, Random(0))


def steps_of(scenario: Scenario) -> list[str]:
    disk = StoppingDisk(lambda number, name: False)
    scenario.extract(scenario.fresh("steps"), disk=disk)
    return disk.steps


def test_sigkill_at_each_named_step_loses_nothing(scenario):
    steps = steps_of(scenario)
    assert {"write h5", "fsync h5", "replace h5"} <= set(steps)
    numbers = {steps.index(name) + 1 for name in steps} | {len(steps) - steps[::-1].index(name) for name in steps}
    for number in sorted(numbers):  # the first and the last of each name
        path, report = scenario.fresh(f"kill {number}"), scenario.folder / f"committed {number}"
        disk = KilledDisk(lambda at, _, number=number: at == number, report)
        status = in_child(lambda path=path, disk=disk: scenario.extract(path, disk=disk))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        scenario.check(path, report.read_text().splitlines() if report.exists() else [])


def test_a_full_disk_is_one_clear_line_and_loses_nothing(scenario):
    steps = steps_of(scenario)
    hopeless = [at for at, name in enumerate(steps, 1) if name.startswith(("write", "create", "mkdir"))]
    for number in hopeless[:: scenario.stride]:
        path, run = scenario.fresh(f"full {number}"), Run()
        with pytest.raises(CacheError, match=r"The disk is full: no room for .*h5.* Committed rows are kept") as caught:
            scenario.extract(path, disk=FullDisk(lambda at, _, number=number: at >= number), run=run)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
        assert "needs about 1." in str(caught.value) or number <= steps.index("create plan")
        assert not list(path.parent.rglob("*.tmp"))
        scenario.check(path, run.computed)


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    class Small(StoppingDisk):
        def free(self, path):
            return 1_500_000

    path, images = place(tmp_path), listing(64)
    with CacheWriter.open(path, SPEC, disk=Small(lambda *_: False)) as writer:
        writer.plan(images.digests)
        writer.require_room(16)
        with pytest.raises(CacheError, match=r"Not enough room in .*: 13.* MB are needed and 1.5 MB are free"):
            writer.require_room(100_000)
        with pytest.raises(CacheError, match="Not enough room"):
            writer.commit(0, np.zeros((32, 25_000), np.float32))
    assert not CachePlaces(path).shards()


def test_too_little_room_for_more_photos_is_said_by_the_plan(tmp_path):
    class Small(StoppingDisk):
        def free(self, path):
            return 1_000_000

    path = place(tmp_path)
    extract(path, listing(40))
    before = everything(path)
    assert extract(path, listing(40), disk=Small(lambda *_: False)).computed == []
    with pytest.raises(CacheError, match=r"Not enough room in .*: 1.* MB are needed and 1 MB are free"):
        extract(path, listing(41), disk=Small(lambda *_: False))
    assert everything(path) == before


def test_an_interrupt_while_hdf5_writes_leaves_everything_in_order(tmp_path):
    class Interrupted(StoppingDisk):
        def stop(self):
            raise KeyboardInterrupt

    scenario = Scenario(tmp_path, None, IMAGES)
    for number, step in enumerate(steps_of(scenario), 1):
        if step.endswith("h5"):
            path = scenario.fresh(str(number))
            with pytest.raises(KeyboardInterrupt):
                extract(path, IMAGES, disk=Interrupted(lambda at, _, number=number: at == number))
            assert not list(path.parent.glob("*.tmp"))
            scenario.check(path, IMAGES.contents)


def test_a_second_writer_is_refused_at_once_and_a_reader_is_not(tmp_path):
    path = place(tmp_path)
    extract(path, listing(40))
    before = everything(path)
    with CacheWriter.open(path, SPEC) as writer:
        writer.plan(listing(50).digests)
        with pytest.raises(BusyError, match=r"Another process is writing .*\.h5") as caught:
            CacheWriter.open(path, SPEC)
        assert caught.value.exit_code == 75
        assert os.waitstatus_to_exitcode(in_child(lambda: extract(path, listing(50)))) == 75
        assert everything(path) == before
    assert len(extract(path, listing(50)).computed) == 10


def test_a_killed_holder_blocks_nobody(tmp_path):
    path = place(tmp_path)

    def hold_and_die():
        CacheWriter.open(path, SPEC)
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(hold_and_die))
    assert len(extract(path, listing(5)).computed) == 5


def test_of_many_processes_at_once_each_finishes_or_is_told_to_wait(tmp_path):
    images, reference = listing(300), place(tmp_path / "reference")
    extract(reference, images)
    path = place(tmp_path / "cache")
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                extract(path, images)
                os._exit(0)
            except BusyError:
                os._exit(75)
            except BaseException:
                os._exit(99)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) <= {0, 75} and 0 in codes
    assert contents(path) == contents(reference) and verify_cache(path) == []


def test_reading_goes_on_while_a_new_file_takes_the_old_ones_place(tmp_path):
    path = place(tmp_path)
    extract(path, listing(40))
    with FeatureCache.open(path) as old:
        extract(path, listing(60))
        assert len(old) == 40 and old.read_rows().shape == (40, 4) and old.problems() == []
    with FeatureCache.open(path) as new:
        assert len(new) == 60


def test_shards_of_a_run_for_another_listing_are_not_wasted(tmp_path):
    path = place(tmp_path)
    with CacheWriter.open(path, SPEC) as writer:
        plan = writer.plan(listing(100).digests)
        writer.commit(1, network(listing(100).digests[plan.blocks[1]]))
    with pytest.raises(CacheError, match="not complete yet"):
        FeatureCache.open(path)
    other = Listing([*listing(60, first=20).contents, "new"])
    run = extract(path, other)
    assert sorted(run.computed) == sorted([*listing(12, first=20).contents, *listing(16, first=64).contents, "new"])
    assert run.plan.resumed == 32


def test_a_damaged_shard_is_computed_again_and_no_other(tmp_path):
    scenario = Scenario(tmp_path, None, IMAGES)
    path = scenario.fresh("damaged")
    with CacheWriter.open(path, SPEC) as writer:
        for number, positions in enumerate(writer.plan(IMAGES.digests).blocks[:2]):
            bad = {40: "not an image"} if number == 1 else {}
            writer.commit(number, network(IMAGES.digests[[at for at in positions if at not in bad]]), bad)
    shard = CachePlaces(path).shards()[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    run = extract(path, IMAGES)
    assert run.computed == [*IMAGES.contents[:32], *IMAGES.contents[64:]] and "SHA-256" in run.notes[0]
    assert contents(path) == scenario.expected


@pytest.mark.parametrize("at", [100, 900, 2500])
def test_a_disk_that_stores_something_else_is_noticed_before_the_old_file_goes(tmp_path, at):
    class Lying(DiskFile):
        def write(self, data):
            data, start = bytearray(data), self.tell()
            if start <= at < start + len(data):
                data[at - start] ^= 1
            return super().write(data)

    class LyingDisk(QuickDisk):
        def create(self, path):
            return Lying(path) if ".h5" in path.name else super().create(path)

    path = place(tmp_path)
    extract(path, listing(40))
    before = everything(path)
    with pytest.raises(CacheError):
        extract(path, listing(200), disk=LyingDisk())
    assert everything(path) == before and len(CachePlaces(path).shards()) == 5
    assert extract(path, listing(200)).computed == []
