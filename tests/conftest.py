"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# before torch is imported anywhere: test processes share the cores, and idle threads that spin slow all of them
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def photos() -> Path:
    """Return the folder of real photographs (hymenoptera_data/, cats_dogs/), or skip where there is none."""
    place = os.environ.get("PIPELINE_TEST_PHOTOS", "")
    if not place or not Path(place).is_dir():
        pytest.skip("PIPELINE_TEST_PHOTOS names no folder of real photographs")
    return Path(place)
