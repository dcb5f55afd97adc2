"""Imports point down only, and light things stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent
# top to bottom; a room may import those below it
ROOMS = [
    "__main__", "cli", "experiment", "upkeep", "lookup", "scoring", "certainty", "learning_curve", "fitting",
    "estimating", "scaling", "budget", "auditing", "report", "export", "streaming", "thumbnails", "extraction",
    "computing", "finetuning", "classifier", "runs", "heads", "backbones", "data", "store", "recipes", "comparison",
    "evaluation", "memory", "cluster", "libraries", "progress", "registry", "errors", "__init__",
]  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Every room of the package that a file imports, anywhere in it."""
    package = ("pipeline", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names = [module] if len(module) > 1 else [(*module, alias.name) for alias in node.names]
            found |= {name[1] for name in names if name[0] == "pipeline" and len(name) > 1}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pipeline.")}
    return {name for name in found if name in ROOMS}


def test_every_room_has_its_place():
    assert {room_of(path) for path in ROOT.rglob("*.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down_only(room):
    if room == "__init__":
        pytest.skip("it names all rooms, and imports each only when it is first used")
    upward = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in ROOT.rglob("*.py")
        if room_of(path) == room
        for other in imported_rooms(path)
        if ROOMS.index(other) < ROOMS.index(room)
    }
    assert not upward


def test_the_check_sees_an_upward_import(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    culprit = tmp_path / "store" / "file.py"
    culprit.write_text("def f():\n    from ..heads import HEADS\n    from .. import cli\n    import pipeline.data\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert imported_rooms(culprit) == {"heads", "cli", "data"}


def loaded_after(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after running some code."""
    heavy = ("torch", "torchvision", "timm", "sklearn", "scipy", "h5py", "skimage", "matplotlib", "joblib", "tqdm")
    script = f"import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_sklearn():
    assert not loaded_after("import pipeline")


def test_help_loads_neither_torch_nor_sklearn():
    assert not loaded_after("from pipeline.cli.parser import build_parser; build_parser().format_help()")


def test_the_store_loads_no_torch():
    loaded = loaded_after("import pipeline.store, pipeline.store.writer, pipeline.store.catalog")
    assert not loaded & {"torch", "sklearn"}


def test_only_the_command_line_prints():
    for path in ROOT.rglob("*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert room_of(path) == "cli" or "print" not in calls, path


def test_every_public_name_can_be_imported():
    assert set(pipeline.__all__) == set(pipeline._HOMES)
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
