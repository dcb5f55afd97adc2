"""Imports point down only, and light things stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent
PICTURE = (Path(__file__).parent.parent / "README.md").read_text().split("## Architecture")[1].split("```")[1]
ROOMS = re.findall(r"^(\w+)/", PICTURE, re.M)  # top to bottom; a room may import those below it
PACKAGE = {"__init__", "__main__"}


def module_of(path: Path) -> str:
    """Return a file's dotted name below the package; empty for the package's own ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Return the modules of the package that a file imports, anywhere in it but for type checkers alone."""
    tree, found = ast.parse(path.read_text()), set()
    package = ("pipeline", *path.relative_to(ROOT).parts[:-1])
    for_types = {id(node) for block in ast.walk(tree)
                 if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                 for node in ast.walk(block)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            inside = name.removeprefix("pipeline.")
            if inside != name:
                found.add(inside if inside in modules else inside.rpartition(".")[0])
    return found & modules - {module_of(path)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = {module_of(path): path for path in ROOT.rglob("*.py")}
    return {name: imports_of(path, set(files)) for name, path in files.items()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of imports, empty where there is none."""
    done: set[str] = set()

    def circle_from(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name):], name]
        if name not in done:
            for other in sorted(graph[name]):
                if circle := circle_from(other, [*path, name]):
                    return circle
            done.add(name)
        return []

    return next(filter(None, (circle_from(name, []) for name in graph)), [])


def test_the_readme_shows_every_room_and_they_are_few():
    there = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert there == {*ROOMS, *PACKAGE} and len(ROOMS) <= 15


def test_imports_point_down_only(graph):
    imports = [(name, other) for name, others in graph.items() for other in others
               if {room_of(name), room_of(other)} <= {*ROOMS}]  # fmt: skip
    upward = {f"{name} imports {other}" for name, other in imports
              if ROOMS.index(room_of(other)) < ROOMS.index(room_of(name))}  # fmt: skip
    assert len(imports) > 100
    assert not upward


def test_no_file_imports_itself_through_others(graph):
    assert circle_in(graph) == []


def test_the_check_sees_upward_imports_and_circles(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    culprit = tmp_path / "store" / "file.py"
    culprit.write_text("def f():\n    from ..heads import HEADS\n    from .. import cli\n    import pipeline.data\n"
                       "if TYPE_CHECKING:\n    from ..runs import Run\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert imports_of(culprit, {"heads", "cli", "data", "runs", "store.file"}) == {"heads", "cli", "data"}
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def loaded_after(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after running some code."""
    heavy = ("torch", "torchvision", "timm", "sklearn", "scipy", "h5py", "skimage", "matplotlib", "joblib", "tqdm")
    script = f"import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_neither_torch_nor_sklearn():
    assert not loaded_after("import pipeline")


def test_help_loads_neither_torch_nor_sklearn():
    assert not loaded_after("from pipeline.cli import build_parser; build_parser().format_help()")


def test_the_store_loads_no_torch():
    loaded = loaded_after("import pipeline.store, pipeline.store.writer, pipeline.store.catalog")
    assert not loaded & {"torch", "sklearn"}


def test_only_the_command_line_prints():
    for path in ROOT.rglob("*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert room_of(module_of(path)) == "cli" or "print" not in calls, path


def test_every_public_name_can_be_imported():
    assert set(pipeline.__all__) == {*pipeline._HOMES, "BACKBONES"}
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
