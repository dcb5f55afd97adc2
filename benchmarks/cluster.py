"""Stage one on a Dask cluster of this machine against stage one without: what the cluster costs.

    python benchmarks/cluster.py FOLDER [--backbone NAME] [--repeat 3]

Ways take turns, `--repeat` times, so that a busy minute hits each of them; medians are shown. `local N` runs N threads
in one process; `cluster N` a scheduler and N workers of one thread, all of them processes here, started before and warm
(a worker keeps its network between runs, so the local way's loading is left out, but not what is decoded meanwhile).
`images/s` is of the forward passes; `CPU` the processor seconds of all processes from then on, which other work on the
machine changes less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from turns import in_turn, medians

from pipeline.backbones import resolve
from pipeline.core.cluster import connected
from pipeline.core.progress import SilentBar
from pipeline.data import Dataset, load_dataset
from pipeline.engines import Running
from pipeline.stage_one.computer import ClusterComputer, LocalComputer
from pipeline.store import CacheWriter, cache_path


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Start a scheduler and workers; yield its address, and all processes."""
    file, processes = folder / f"{workers}.json", list[subprocess.Popen]()

    def start(*words: str) -> None:
        command = [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1", "--no-dashboard"]
        processes.append(subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL))

    try:
        start("scheduler", "--port", "0", "--scheduler-file", str(file))
        for _ in range(workers):
            start("worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-nanny")
        while not file.exists():
            time.sleep(0.1)
        from distributed import Client

        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(workers, 60)
            address = client.scheduler.address
        yield address, [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(dataset: Dataset, backbone, make, folder: Path, processes: list[psutil.Process]) -> tuple[float, float]:
    """Compute and commit everything; return seconds and processor seconds."""
    everyone = [psutil.Process(os.getpid()), *processes]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        path = cache_path(Path(made), dataset.name, backbone.name, backbone.spec)
        with CacheWriter.open(path, backbone.spec, siblings=()) as writer:
            blocks = writer.plan(dataset.digests).blocks
            computer = make(dataset=dataset, blocks=blocks)
            before, begin = [process.cpu_times() for process in everyone], time.perf_counter()
            computer.compute(writer.commit, SilentBar())
            seconds = time.perf_counter() - begin + computer.head_start
            used = [sum(process.cpu_times()[:2]) - sum(was[:2]) for process, was in zip(everyone, before, strict=True)]
    return seconds, sum(used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    backbone, found = resolve(options.backbone), dict[str, list[tuple[float, float]]]()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        dataset = load_dataset(options.folder, cache_dir=folder)
        for workers in map(int, options.workers.split(",")):
            local = partial(LocalComputer, backbone, running=Running(workers=workers), cache_dir=folder)
            with cluster(folder, workers) as (address, processes), connected(address) as reached:
                remote = partial(ClusterComputer, reached, backbone, running=Running())
                ways = {f"local {workers}": partial(run, dataset, backbone, local, folder, []),
                        f"cluster {workers}": partial(run, dataset, backbone, remote, folder, processes)}
                found |= in_turn(ways, options.repeat, warm_up=1)
    print(f"{len(dataset)} images, medians of {options.repeat}; load average {os.getloadavg()[0]:.1f}")
    for name, times in found.items():
        wall, processor = medians(times)
        print(f"{name:10} {len(dataset) / wall:8.1f} images/s {processor:8.2f} s CPU")


if __name__ == "__main__":
    main()
