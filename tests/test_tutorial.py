"""The notebooks: every cell runs on the images that come with the package, and what it shows is kept in the file."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = {
    "tutorial": ("216 images, 18 classes", "0 images went through the network", "epoch 1/1"),
    "api": ("360 rows, 360 computed; 0 the second time", "svc__C", "splits.val.accuracy", "with random weights",
            "labels to look at", "on 93 images", "feature_3"),
}  # fmt: skip


def outputs_of(notebook) -> str:
    return "\n".join(str(cell.get("outputs", "")) for cell in notebook.cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_it_shows_is_kept_and_names_no_machine(name):
    file = DOCS / f"{name}.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs or cell.source.startswith("import") for cell in notebook.cells if cell.cell_type == "code")
    assert not re.search(r"/(home|root|tmp|work|Users)\b|Traceback|stderr", outputs_of(notebook))
    assert file.stat().st_size < 200_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(name, tmp_path):
    notebook = nbformat.read(DOCS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = outputs_of(notebook)
    for text in NOTEBOOKS[name]:
        assert text in shown, text
