"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def photos() -> Path:
    """Return the folder of real photographs (hymenoptera_data/, cats_dogs/), or skip where there is none."""
    place = os.environ.get("PIPELINE_TEST_PHOTOS", "")
    if not place or not Path(place).is_dir():
        pytest.skip("PIPELINE_TEST_PHOTOS names no folder of real photographs")
    return Path(place)
