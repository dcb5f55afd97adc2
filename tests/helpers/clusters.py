"""A real Dask cluster for tests: scheduler and workers are processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 90  # seconds; a busy machine takes its time to start processes


def until(there: Callable[[], Any], what: str) -> Any:
    """Wait until something is there and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := there()):
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.05)
    return found


class Processes:
    """A scheduler and its workers.

    Attributes
    ----------
    address : str
    scheduler : Popen
    workers : list of Popen
    """

    def __init__(self, folder: Path, **env: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.workers = folder, list[subprocess.Popen]()
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(file), env=env)
        self.address = until(lambda: file.exists() and _address(file), "a scheduler")

    def _start(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            return subprocess.Popen(command, env={**os.environ, **(env or {})}, cwd=self.folder, stdout=log, stderr=log)

    def add_worker(self, **env: str) -> subprocess.Popen:
        """Start a worker of one thread, without a nanny that would start it again."""
        own = ["--local-directory", str(self.folder / f"worker-{len(self.workers)}")]
        worker = self._start("worker", self.address, "--nthreads", "1", "--no-nanny", *own, env=env)
        self.workers.append(worker)
        return worker

    def wait_for_workers(self) -> None:
        """Wait until all workers that still live have joined."""
        from distributed import Client

        living = sum(worker.poll() is None for worker in self.workers)
        with Client(self.address, set_as_default=False) as client:
            until(lambda: len(client.nthreads()) >= living, "all workers")

    def stop(self) -> None:
        """End all of them."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, workers: int = 1, **env: str) -> Iterator[Processes]:
    """Start a cluster; its scheduler and first workers have this environment. End it in the end."""
    processes = Processes(folder, **env)
    try:
        for _ in range(workers):
            processes.add_worker(**env)
        processes.wait_for_workers()
        yield processes
    finally:
        processes.stop()


def _address(file: Path) -> str:
    try:
        return json.loads(file.read_text())["address"]
    except ValueError:  # written only in part so far
        return ""
