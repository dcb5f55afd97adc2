"""How time and memory of `extract` grow with the number of images.

    python benchmarks/growth.py FOLDER [--counts 1000 10000 100000] [--precision bfloat16]

Photos of FOLDER, 96 pixels high, are repeated until there are enough; each copy ends in its number, which changes its
content (so that it needs a forward pass of its own) and no pixel. Each row is a whole `pipeline extract` in a process
of its own; `again` is the same command once more, which finds every row. CPU seconds matter where others use the
machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = 10


def tiles(folder: Path, most: int = 400) -> list[bytes]:
    """Return small JPEG files of the photos in a folder."""
    found = []
    for path in sorted(folder.rglob("*.jpg"))[:most]:
        with Image.open(path) as image:
            small, buffer = image.convert("RGB"), BytesIO()
        small.thumbnail((128, 96))
        small.save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


def fill(place: Path, contents: list[bytes], start: int, stop: int) -> None:
    """Write images number `start` to `stop`, in `CLASSES` folders."""
    for number in range(start, stop):
        folder = place / f"{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07}.jpg").write_bytes(contents[number % len(contents)] + b"%d" % number)


def extract(data: Path, scratch: Path, precision: str) -> dict[str, Any]:
    """Run the command; return its JSON with wall and CPU seconds and the peak of resident memory in bytes."""
    command = [sys.executable, "-m", "pipeline", "extract", "--data", str(data), "--cache-dir", str(scratch / "cache"),
               "--precision", precision, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answer = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {**answer, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options.add_argument("--precision", default="bfloat16")
    given = options.parse_args()
    print(f"{'images':>9}{'':8}{'seconds':>9}{'CPU s':>9}{'CPU ms an image':>17}{'peak, MB':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch, contents, there = Path(folder), tiles(given.folder), 0
        extract(given.folder, scratch, given.precision)  # which keeps the prepared network
        for count in sorted(given.counts):
            fill(scratch / "images", contents, there, count)
            there = count
            for cache in scratch.glob("cache/images*/*.h5"):
                cache.unlink()
            for name in ("", "again"):
                done = extract(scratch / "images", scratch, given.precision)
                assert done["computed"] == (0 if name else count), done
                print(f"{count:9,}{name:>8}{done['seconds']:9.1f}{done['cpu']:9.1f}{1000 * done['cpu'] / count:17.2f}"
                      f"{done['peak'] / 1e6:10.0f}", flush=True)


if __name__ == "__main__":
    main()
