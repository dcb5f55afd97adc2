"""A million files: listed and hashed within a bounded memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = r"""
import re, sys
from pathlib import Path
from pipeline.data import load_dataset
dataset = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # getrusage's may be the parent's
print(len(dataset), int(peak[1]) * 1024)
"""


@pytest.mark.slow
def test_a_million_files_take_less_than_a_gigabyte(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(500_000):
            (tmp_path / "root" / name / f"a-name-of-the-usual-length-{number}.jpg").touch()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "root"), str(tmp_path / "cache")]
    count, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    shutil.rmtree(tmp_path / "root")  # pytest would keep it for three runs
    assert count == 1_000_000
    assert peak < 10**9
