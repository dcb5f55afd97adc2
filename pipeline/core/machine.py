"""What this machine has: memory that may be taken, and versions of packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNKNOWN = 4 * 2**30  # where the system does not tell


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: of the machine, and of its container.

    Parameters
    ----------
    root : Path
        Of the file system that tells.
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    group = root / "sys/fs/cgroup"
    for limit, used in (("memory.max", "memory.current"),  # version 2, and 1
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        values = [*_lines(group / limit)[:1], *_lines(group / used)[:1]]
        if len(values) == 2 and values[0].isdigit():  # "max" where there is no limit
            found.append(int(values[0]) - int(values[1]))
    return max(0, min(found, default=UNKNOWN))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def installed(library: str) -> str:
    """Return a package's installed version, empty where there is none. Imports nothing."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
