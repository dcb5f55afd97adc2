"""The default data set: tiles of photographs that installed packages bring along; no download.

A tile's class is the photograph that it was cut from. Easy for a network that has seen the world, while a linear
model on raw pixels (16 x 16) gets half of them wrong: so it shows what frozen features are worth.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.errors import DataError
from ..core.progress import Progress, silent
from .decoding import decode, read_bytes
from .files import UnreadableImageError
from .folders import list_folder
from .generated import ensure
from .listing import Samples

SIDE = 64  # of a tile, in pixels
MOST = 64  # tiles of one photograph
PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "page.png",
        "retina.jpg",
        "rocket.jpg",
        "text.png",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
_PLACES = {"skimage": "data", "sklearn": "datasets/images"}
_LEAST_DETAIL = 1.0  # standard deviation of the grey levels; black corners of the retina have 0


def list_phototiles(cache_dir: Path, progress: Progress = silent) -> Samples:
    """Cut the tiles unless that is done, and list them: three quarters train, every fourth val.

    Raises
    ------
    DataError
        Fewer than two of the photographs are installed, or the folder of caches cannot be written.
    """
    photographs, missing = find_photographs()
    if len(photographs) < 2:
        raise DataError(
            "The phototiles need the photographs that come with scikit-image and scikit-learn, and "
            f"{len(photographs)} of 18 can be read. Install scikit-image, or give a folder of your own with --data."
        )
    folder = cache_dir / "downloads" / "phototiles"
    recipe = f"phototiles 1: {SIDE} pixels, at most {MOST} each, of {', '.join(sorted(photographs))}"
    ensure(folder, lambda fresh: _cut_all(photographs, fresh), recipe=recipe, cache_dir=cache_dir, progress=progress)
    samples = list_folder(folder, progress)
    if missing:
        samples.notes.append(f"Photographs not found in the installed packages, left out: {', '.join(missing)}.")
    return samples


def photograph_files() -> list[Path]:
    """Return the files of those photographs that are installed."""
    folders = {package: _package_folder(package) for package in PHOTOGRAPHS}
    places = [(folders[package], _PLACES[package], name) for package, names in PHOTOGRAPHS.items() for name in names]
    files = [folder / place / name for folder, place, name in places if folder]
    return [file for file in files if file.is_file()]


def find_photographs() -> tuple[dict[str, Image.Image], list[str]]:
    """Return the photographs by class name, and the file names of those that are missing or unreadable."""
    found, missing = {}, []
    for package, names in PHOTOGRAPHS.items():
        folder = _package_folder(package)
        for name in names:
            try:
                if folder is None:
                    raise UnreadableImageError(f"{package} is not installed")
                found[Path(name).stem] = decode(read_bytes(folder / _PLACES[package] / name))
            except UnreadableImageError:
                missing.append(name)
    return found, missing


def cut(photograph: Image.Image) -> list[Image.Image]:
    """Return at most `MOST` tiles, spread evenly over those places of the photograph that show something."""
    columns, rows = photograph.width // SIDE, photograph.height // SIDE
    corners = [(SIDE * column, SIDE * row) for row in range(rows) for column in range(columns)]
    tiles = [photograph.crop((left, top, left + SIDE, top + SIDE)) for left, top in corners]
    tiles = [tile for tile in tiles if np.asarray(tile.convert("L")).std() >= _LEAST_DETAIL]
    if len(tiles) <= MOST:
        return tiles
    return [tiles[index] for index in np.linspace(0, len(tiles) - 1, MOST).round().astype(int)]


def _cut_all(photographs: dict[str, Image.Image], folder: Path) -> None:
    for name, photograph in photographs.items():
        for number, tile in enumerate(cut(photograph)):
            place = folder / ("val" if number % 4 == 3 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            tile.save(place / f"{number:02d}.png")


def _package_folder(package: str) -> Path | None:
    """Return where a package lies, without importing it."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None
