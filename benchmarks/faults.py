"""Kill real extractions at random moments, over and over, and look for anything lost or different.

    python benchmarks/faults.py FOLDER [--kills 200] [--seed 0] [--backbone efficientnet_lite0]

FOLDER is a data set as `pipeline extract --data` takes it, hymenoptera_data for example. One extraction runs
undisturbed, as the reference. Then each round extracts into an empty cache, and the process is killed (SIGKILL)
at a random moment and started again, several times, until it is left to finish. After every kill the committed
rows are counted; a run that starts again must find all of them. After every round the file must equal the
reference's in every bit of every data set, and verify. Exits with 1 if anything was lost or differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py

from pipeline.store import list_caches, verify_cache


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    before: int = 0
    amid: int = 0
    after: int = 0
    resumes: int = 0
    lost: int = 0
    rounds: int = 0
    different: int = 0
    damaged: int = 0

    def __str__(self) -> str:
        return (
            f"kills {self.kills} (before the first commit {self.before}, between commits {self.amid}, after the last "
            f"{self.after}) · resumes {self.resumes} · rounds {self.rounds} · committed rows lost {self.lost} · "
            f"files not bit-identical {self.different} · files that do not verify {self.damaged}"
        )


class Victim:
    """Extractions of one data set into one cache folder."""

    def __init__(self, data: str, backbone: str, cache: Path):
        self.cache = cache
        self.command = [sys.executable, "-m", "pipeline", "extract", "--json"]
        self.command += ["--data", data, "--backbone", backbone, "--cache-dir", str(cache)]

    def run(self) -> dict:
        """Extract undisturbed; return what the command reports."""
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"An undisturbed extraction failed:\n{done.stderr}")
        return json.loads(done.stdout)

    def kill(self, moment: str, delay: float) -> bool:
        """Extract, and kill the process `delay` seconds after some moment; false if it finished before that.

        The moments: ``start``, of the process; ``shard``, its first commit; ``file``, the creation of the final file.
        """
        process = self._start()
        self._wait(process, moment)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        return process.wait() != 0

    def seconds_of_commits(self) -> float:
        """Extract undisturbed; return the seconds from the first commit to the creation of the final file."""
        process = self._start()
        self._wait(process, "shard")
        begin = time.perf_counter()
        self._wait(process, "file")
        seconds = time.perf_counter() - begin
        process.wait()
        return seconds

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait(self, process: subprocess.Popen, moment: str) -> None:
        pattern = {"start": "..", "shard": "*/*.partial/*.shard", "file": "*/.*.h5.tmp"}[moment]
        before = set(self.cache.glob(pattern)) if moment == "shard" else set()
        while process.poll() is None and moment != "start" and set(self.cache.glob(pattern)) <= before:
            time.sleep(0.001)

    def committed(self) -> int:
        """Return the rows that are committed: in shards, or in the complete file."""
        return max(
            (entry.rows for entry in list_caches(self.cache) if entry.state in ("partial", "complete")), default=0
        )


def contents(path: Path) -> dict[str, tuple]:
    """Return every data set of a cache but `meta` (which tells when and how long), bit for bit."""
    with h5py.File(path) as file:
        return {
            name: (str(file[name].dtype), file[name].shape, file[name][()].tobytes()) for name in file if name != "meta"
        }


def play_round(victim: Victim, expected: dict, rows: int, seconds: float, rng: random.Random, tally: Tally) -> None:
    """Kill and resume until the file is there, and compare it with the reference's."""
    committed = 0
    for _ in range(rng.randint(4, 10)):
        moment = rng.choices(["start", "shard", "file"], [1, 6, 1])[0]
        # short enough to hit one extraction several times
        span = {"start": 5.0, "shard": min(2.0, seconds / 4), "file": 0.1}[moment]
        if not victim.kill(moment, rng.uniform(0, span)):
            break
        now = victim.committed()
        tally.kills += 1
        tally.before += now == 0
        tally.amid += 0 < now < rows
        tally.after += now == rows
        tally.resumes += committed > 0
        tally.lost += max(0, committed - now)
        committed = now
    report = victim.run()
    tally.resumes += committed > 0
    tally.lost += max(0, report["computed"] - (rows - committed))
    tally.rounds += 1
    path = Path(report["path"])
    tally.different += contents(path) != expected
    tally.damaged += bool(verify_cache(path))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", metavar="FOLDER")
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--backbone", default="efficientnet_lite0")
    given = options.parse_args()
    rng, tally = random.Random(given.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        reference = Victim(given.data, given.backbone, Path(folder) / "reference")
        seconds = reference.seconds_of_commits()
        report = reference.run()
        expected, rows = contents(Path(report["path"])), report["rows"]
        print(f"{rows} rows; undisturbed, {seconds:.1f} s from the first commit to the last", flush=True)
        while tally.kills < given.kills:
            cache = Path(folder) / "victim"
            play_round(Victim(given.data, given.backbone, cache), expected, rows, seconds, rng, tally)
            shutil.rmtree(cache)
            print(tally, flush=True)
    return 1 if tally.lost or tally.different or tally.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
