"""Decoding in processes of their own, for an accelerator that is faster than threads can feed it.

Threads that decode wait for each other: some fifteen times an image each takes the interpreter's lock, and so does the
thread that runs the device; 16 of them kept an H200 a quarter busy. A process here reads, checks and decodes a whole
batch and lays it out in memory that it shares with this one, where a thread of this one waits for it without any lock
and hands it to the device.

The processes are started plainly, not forked, and import neither torch nor scikit-learn. They end by themselves when
this one is gone, however it went.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..core.errors import DataError, PipelineError
from ..core.machine import available_memory
from ..data import Dataset
from ..data.preprocessing import MOST_PIXELS, Preprocessing
from ..data.staging import Room, Staged, stage
from ..engines.embedding import StoppedError, noting
from ..engines.memory import keep_freed_memory
from .reading import Reading

MORE_SLOTS = 4  # batches that are with the device while every process decodes another
MOST_MEMORY = 1 / 8  # of what is available, for all slots
LEAST = 2**20  # bytes of a slot; what does not fit goes over the line
TAPS = 32  # pixels that make up one of the result, seldom more: four bytes twice each
GRACE = 5.0  # seconds for a process to end
LOOK = 0.2  # seconds between looks whether the work is being given up
LockPages = Callable[[np.ndarray, bool], object]


def possible() -> bool:
    """Tell whether this system has what such processes take."""
    return hasattr(os, "memfd_create")


@dataclass(frozen=True)
class Found:
    """What came of a batch.

    Attributes
    ----------
    staged : Staged
        Valid until the `with` block ends.
    failures : dict
        From an image's place in the batch to the reason why there is nothing of it.
    passing : set of int
        Those of them that could not even be read.
    """

    staged: Staged
    failures: dict[int, str]
    passing: set[int]


class _Process:
    """One of the processes, and the line to it.

    Attributes
    ----------
    pending : int or None
        The slot of a batch that was asked for, and whose answer nobody has taken yet.
    """

    def __init__(self, preprocessing: Preprocessing, slots: list[int], size: int, capacity: int):
        self.line, theirs = Pipe()
        with theirs:
            # Ctrl-C is for this process, which ends that one
            words = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " \
                    f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; " \
                    f"serve({theirs.fileno()}, {slots!r}, {size}, {capacity})"
            # libraries that compute would make a thread a core in each; names of files are read as here
            own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": str(sys.flags.utf8_mode)}
            self.process = subprocess.Popen(
                [sys.executable, "-c", words], pass_fds=(theirs.fileno(), *slots), env={**os.environ, **own},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self.pending: int | None = None
        self._send(preprocessing)

    def ask(self, number: int, part: Dataset) -> None:
        """Have it decode a batch into a slot."""
        self._send((number, part))
        self.pending = number

    def answer(self, stopped: Callable[[], bool] = lambda: False) -> tuple[Any, Any, Any]:
        """Wait for what was asked for.

        Raises
        ------
        StoppedError
            If that is given up; the answer is still to come then.
        """
        try:
            while not self.line.poll(LOOK):
                if stopped():
                    raise StoppedError
            found = self.line.recv()
        except (EOFError, OSError):
            raise self.ended() from None
        self.pending = None
        return found

    def _send(self, message: Any) -> None:
        try:
            self.line.send(message)
        except OSError:
            raise self.ended() from None

    def ended(self) -> PipelineError:
        """Return what to say of a process that is gone."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.returncode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return PipelineError(f"A process that decodes images was ended {how}; the system does that, too, where memory "
                             "is short. What is done is kept: run the same command again, with fewer --workers.")


class DecodingProcesses:
    """Processes that decode batches, and the memory that they share with this one.

    Parameters
    ----------
    preprocessing : Preprocessing
    count : int
        Processes.
    batch_size : int
        Views in a batch, at most.

    Attributes
    ----------
    slots : list of ndarray
        The memory, of a batch each: as many batches as can be worked on at once.
    """

    def __init__(self, preprocessing: Preprocessing, count: int, batch_size: int):
        slots = count + MORE_SLOTS
        height, width = preprocessing.transform.crop
        views, most = batch_size * (3 * height * width + 8 * TAPS * (height + width)), batch_size * 3 * MOST_PIXELS
        size = min(views + most, max(LEAST, int(MOST_MEMORY * available_memory() / slots)))
        self._processes: list[_Process] = []
        self._idle, self._free = SimpleQueue[_Process](), SimpleQueue[int]()
        self._lock: LockPages = lambda memory, lock: None
        self._locked = set[int]()
        files = list[int]()
        try:
            for _ in range(slots):
                files.append(os.memfd_create("pipeline-batch"))
            self.slots = [_mapped(file, size) for file in files]
            for _ in range(count):
                self._processes.append(_Process(preprocessing, files, size, max(0, size - views)))
        except BaseException:
            self.close()
            raise
        finally:
            for file in files:  # whoever has it mapped needs it no more
                os.close(file)
        for number in range(slots):
            self._free.put(number)
        for process in self._processes:
            self._idle.put(process)

    def locked_by(self, lock_pages: LockPages) -> None:
        """Have a device lock the memory into place when it is first used, and let it go at the end."""
        self._lock = lock_pages

    @contextmanager
    def decoded(self, part: Dataset, stopped: Callable[[], bool] = lambda: False) -> Iterator[Found]:
        """Yield the images of a data set, a batch, decoded by whichever process is idle first.

        Raises
        ------
        PipelineError
            If that process is gone; `DataError` for a file that is no longer what was listed.
        StoppedError
            If the work is being given up, as `stopped` tells.
        """
        process, number, found = self._idle.get(), None, None
        try:
            if process.pending is not None:  # what nobody waited for any more
                abandoned = process.pending
                process.answer(stopped)
                self._free.put(abandoned)
            number = self._free.get()
            if number not in self._locked:
                self._locked.add(number)
                self._lock(self.slots[number], True)
            process.ask(number, part)
            found = process.answer(stopped)
        finally:
            # one that is gone says so to the next, who would else wait for ever; a slot that is still written to waits
            if number is not None and found is None and process.pending is None:
                self._free.put(number)
            self._idle.put(process)
        try:
            yield self._taken(number, *found)
        finally:
            self._free.put(number)

    def _taken(self, number: int, kind: Any, found: Any, spans: Any) -> Found:
        if kind is not None:
            raise kind(found)
        memory = self.slots[number].data
        return pickle.loads(found, buffers=[memory[start:stop] for start, stop in spans])

    def close(self) -> None:
        """End the processes: what they were decoding is of no use to anybody."""
        for process in self._processes:
            process.process.terminate()
        for process in self._processes:
            process.line.close()
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(GRACE)
        for number in self._locked:
            self._lock(self.slots[number], False)
        self._processes, self._locked = [], set()


def _mapped(file: int, size: int) -> np.ndarray:
    os.ftruncate(file, size)  # takes no memory before it is written to
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


def serve(line: int, slots: list[int], size: int, capacity: int) -> None:
    """Decode what the other process asks for until it is gone: what such a process runs.

    Parameters
    ----------
    line : int
        The descriptor of the connection.
    slots : list of int
        Those of the memory, `size` bytes each, of which images as decoded may take `capacity`.
    """
    keep_freed_memory()
    connection, memory = Connection(line), [_mapped(slot, size) for slot in slots]
    rooms = [Room(capacity, partial(_the_same, held)) for held in memory]
    with suppress(EOFError, OSError):  # the other is gone
        preprocessing: Preprocessing = connection.recv()
        while True:
            number, part = connection.recv()
            connection.send(_reply(part, preprocessing, rooms[number], memory[number]))


def _the_same(memory: np.ndarray, size: int) -> np.ndarray:
    """Return the memory of a batch, which is all that there is."""
    return memory


def _reply(part: Dataset, preprocessing: Preprocessing, room: Room, memory: np.ndarray) -> tuple[Any, Any, Any]:
    """Return a batch, pickled, with where in the shared memory its arrays lie; or the type and message of an error."""
    spans, base = list[tuple[int, int]](), memory.ctypes.data

    def elsewhere(buffer: pickle.PickleBuffer) -> bool:
        """Tell whether an array does not lie in the shared memory, and note where it lies there."""
        start = np.frombuffer(buffer.raw(), np.uint8).ctypes.data - base if buffer.raw().nbytes else -1
        if not 0 <= start < len(memory):
            return True
        spans.append((start, start + buffer.raw().nbytes))
        return False

    try:
        reading, failures, images = Reading(part, preprocessing, for_device=True), dict[int, str](), []
        for place in range(len(part)):
            with noting(failures, place):
                images.append(reading(place))
        room.clear()
        found = Found(stage(images, preprocessing.transform, room), failures, reading.passing & failures.keys())
        return None, pickle.dumps(found, 5, buffer_callback=elsewhere), spans
    except PipelineError as error:
        return DataError if isinstance(error, DataError) else PipelineError, str(error), None
    except Exception:
        return RuntimeError, f"Decoding failed:\n{traceback.format_exc()}", None
