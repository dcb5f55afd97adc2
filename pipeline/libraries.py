"""Which versions of which packages are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(library: str) -> str:
    """Return a package's installed version, empty where there is none. Imports nothing."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
