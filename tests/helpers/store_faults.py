"""Disks that fail: one records every change so that power cuts can be replayed, one is killed, one fills up.

The model of a power cut is the harshest that POSIX allows: of a file's writes since its last fsync any subset of
pages survives, of a folder's changes since its last fsync any subset; what was fsynced survives.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from store_tools import Witness

from pipeline.store.disk import Disk, DiskFile

PAGE = 512  # smaller than a real one, so that small files have many


class _Unsynced(DiskFile):
    def sync(self) -> None:
        pass


class QuickDisk(Disk):
    """A disk that does not wait: for going on after a crash, where only the outcome is looked at."""

    def create(self, path):
        return _Unsynced(path)

    def sync_folder(self, path):
        pass


@dataclass
class Operation:
    """One change: its kind, the path (relative to the recorded folder) or the number of the file, and the rest."""

    kind: str
    target: object
    rest: tuple = ()


class RecordedFile(DiskFile):
    """A file whose writes, truncations and fsyncs are entered into a log."""

    def __init__(self, path: Path, number: int, log: list[Operation]):
        self._number, self._log = number, log
        super().__init__(path)

    def write(self, data) -> int:
        data = bytes(data)
        self._log.append(Operation("write", self._number, (self.tell(), data)))
        return super().write(data)

    def truncate(self, size=None) -> int:
        self._log.append(Operation("truncate", self._number, (self.tell() if size is None else size,)))
        return super().truncate(size)

    def sync(self) -> None:
        self._log.append(Operation("sync", self._number))
        super().sync()


class Recorder(Witness):
    """A disk that really does everything, and notes it; also what was committed when."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.files = folder, [], 0
        for path in sorted(folder.rglob("*")):  # what is there already survives any crash
            self._present(path)
        self.start = len(self.log)

    def _present(self, path: Path) -> None:
        if path.is_dir():
            self._note("mkdir", path)
        else:
            self.files += 1
            self._note("create", path, self.files)
            self.log += [Operation("write", self.files, (0, path.read_bytes())), Operation("sync", self.files)]
        self._note("sync_folder", path.parent)

    def _note(self, kind: str, target: Path, *rest) -> None:
        self.log.append(Operation(kind, target.relative_to(self.folder), rest))

    def create(self, path):
        self.files += 1
        self._note("create", path, self.files)
        return RecordedFile(path, self.files, self.log)

    def replace(self, source, target):
        self._note("replace", target, source.relative_to(self.folder))
        super().replace(source, target)

    def link(self, source, target):
        raise AssertionError("not part of the recorded runs")

    def unlink(self, path):
        if path.exists():
            self._note("unlink", path)
        super().unlink(path)

    def remove_folder(self, path):
        self._note("unlink", path)
        super().remove_folder(path)

    def mkdir(self, path):
        self._note("mkdir", path)
        super().mkdir(path)

    def sync_folder(self, path):
        if path.is_relative_to(self.folder):
            self._note("sync_folder", path)
        super().sync_folder(path)

    def committed(self, contents):
        self.log.append(Operation("committed", tuple(contents)))


@dataclass
class _File:
    content: bytearray = field(default_factory=bytearray)
    pending: list[Callable[[bytearray], None]] = field(default_factory=list)


class Wreck:
    """The state of a disk after the first `count` recorded operations and a crash.

    Parameters
    ----------
    log : list of Operation
    count : int
    power : Random or None
        None for the death of the process alone, after which everything done is there; otherwise what was
        not fsynced survives by this generator's chance.
    """

    def __init__(self, log: list[Operation], count: int, power: Random | None):
        self._files: dict[int, _File] = {}
        self._names: dict[Path, int | None] = {}  # None is a folder
        self._pending: dict[Path, list[Callable[[], None]]] = {}
        self._live: dict[Path, int] = {}  # names as the running process sees them
        self.committed: tuple[str, ...] = ()
        for operation in log[:count]:
            getattr(self, f"_{operation.kind}")(operation.target, *operation.rest)
        for changes in [*self._pending.values()]:
            self._settle(changes, power)
        for file in self._files.values():
            for change in self._surviving(file.pending, power):
                change(file.content)

    @staticmethod
    def _surviving(changes: list, power: Random | None) -> list:
        return changes if power is None else [change for change in changes if power.random() < 0.5]

    def _settle(self, changes: list, power: Random | None) -> None:
        for change in self._surviving(changes, power):
            change()
        changes.clear()

    def _rename(self, folder: Path, change: Callable[[], None]) -> None:
        self._pending.setdefault(folder, []).append(change)

    def _mkdir(self, path: Path) -> None:
        self._rename(path.parent, lambda: self._names.update({path: None}))

    def _create(self, path: Path, number: int) -> None:
        self._files[number] = _File()
        self._live[path] = number
        self._rename(path.parent, lambda: self._names.update({path: number}))

    def _replace(self, target: Path, source: Path) -> None:
        number = self._live[target] = self._live.pop(source)

        def change() -> None:
            self._names.pop(source, None)
            self._names[target] = number

        self._rename(target.parent, change)

    def _unlink(self, path: Path) -> None:
        self._rename(path.parent, lambda: self._names.pop(path, None) and None)

    def _sync_folder(self, path: Path) -> None:
        self._settle(self._pending.get(path, []), None)

    def _write(self, number: int, offset: int, data: bytes) -> None:
        start = 0
        while start < len(data):
            end = min(len(data), start + PAGE - (offset + start) % PAGE)
            self._files[number].pending.append(_overwrite(offset + start, data[start:end]))
            start = end

    def _truncate(self, number: int, size: int) -> None:
        self._files[number].pending.append(_resize(size))

    def _sync(self, number: int) -> None:
        file = self._files[number]
        for change in file.pending:
            change(file.content)
        file.pending.clear()

    def _committed(self, contents: tuple[str, ...]) -> None:
        self.committed = contents

    def rebuild(self, folder: Path) -> None:
        """Lay the wreck out as real files; what lies in a lost folder is lost."""
        folder.mkdir()
        for path in sorted(self._names, key=lambda path: len(path.parts)):
            place, number = folder / path, self._names[path]
            if place.parent.is_dir():
                place.mkdir() if number is None else place.write_bytes(self._files[number].content)


def _overwrite(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    return change


def _resize(size: int) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        del content[size:]
        content.extend(bytes(size - len(content)))

    return change


class StoppingFile(DiskFile):
    """A file that asks its disk before each write and fsync."""

    def __init__(self, path: Path, disk: StoppingDisk):
        self._disk = disk
        super().__init__(path)

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        if self._disk.step(f"write {_subject(self.path)}"):
            super().write(data[: len(data) // 2])
            self._disk.stop()
        return super().write(data)

    def sync(self) -> None:
        if self._disk.step(f"fsync {_subject(self.path)}"):
            self._disk.stop()
        super().sync()


class StoppingDisk(Witness):
    """A disk on which the chosen step does not complete.

    Parameters
    ----------
    chosen : callable
        Told the number (from 1) and the name of each step, such as ``"write shard"``; true stops it half-way.
    report : Path, optional
        Where to note what is committed.
    """

    def __init__(self, chosen: Callable[[int, str], bool], report: Path | None = None):
        self.chosen, self.report, self.steps = chosen, report, []

    def committed(self, contents):
        if self.report:
            self.report.write_text("\n".join(contents))

    def step(self, name: str) -> bool:
        self.steps.append(name)
        return self.chosen(len(self.steps), name)

    def stop(self) -> None:
        raise NotImplementedError

    def create(self, path):
        if self.step(f"create {_subject(path)}"):
            self.stop()
        return StoppingFile(path, self)

    def replace(self, source, target):
        if self.step(f"replace {_subject(target)}"):
            self.stop()
        super().replace(source, target)

    def unlink(self, path):
        if path.exists() and self.step(f"unlink {_subject(path)}"):
            self.stop()
        super().unlink(path)

    def sync_folder(self, path):
        if self.step(f"fsync folder {path.suffix}"):
            self.stop()
        super().sync_folder(path)

    def mkdir(self, path):
        if self.step(f"mkdir {path.suffix}"):
            self.stop()
        super().mkdir(path)


class KilledDisk(StoppingDisk):
    """The process dies at the chosen step."""

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(StoppingDisk):
    """The disk is full from the chosen step on."""

    def step(self, name):
        return super().step(name) and name.startswith(("write", "create", "mkdir"))

    def stop(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _subject(path: Path) -> str:
    return next(
        (kind for kind in ("shard", "plan", "corrupt", "h5") if f".{kind}" in path.name or path.name == kind), "?"
    )


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            os._exit(getattr(error, "exit_code", 99))
    return os.waitpid(child, 0)[1]
