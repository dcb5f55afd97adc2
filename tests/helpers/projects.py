"""Folders with photographs, and commands run in them as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.cli import main

SIDE, TILES = 96, 16


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> Path:
    """Tiles of two photographs, in class folders of train and val; every fourth is held out."""
    root = tmp_path_factory.mktemp("tiles") / "tiles"
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for number in range(TILES):
            top, left = SIDE * (number // 6), SIDE * (number % 6)
            folder = root / ("val" if number % 4 == 0 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(folder / f"{number:02}.png")
    return root


class Project:
    """A working folder and a way to run commands in it."""

    def __init__(self, folder: Path, monkeypatch, capsys):
        self.folder, self._capsys = folder, capsys
        monkeypatch.chdir(folder)

    def run(self, *words: object) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *self._capsys.readouterr()

    def json(self, *words: object) -> dict:
        code, out, err = self.run(*words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    def error(self, *words: object, code: int = 2) -> str:
        got, out, err = self.run(*words)
        assert (got, out) == (code, ""), (got, out, err)
        lines = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        assert "Traceback" not in err
        return lines[0]


@pytest.fixture
def project(tmp_path, monkeypatch, capsys) -> Project:
    return Project(tmp_path, monkeypatch, capsys)
