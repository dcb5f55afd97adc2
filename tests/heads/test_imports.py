"""What a head costs to import: looking costs nothing, and only training `linear` and `mlp` costs torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.heads import HEADS

FIT = """
import numpy
X, y = numpy.random.default_rng(0).normal(size=(30, 4)), numpy.arange(30) % 2
make_head({name!r}).fit(X, y).predict_proba(X)
"""


def modules_after(code):
    code = f"import sys; from pipeline.heads import HEADS, make_head\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_looking_at_the_heads_imports_neither_torch_nor_scikit_learn():
    assert not modules_after("import pipeline.heads; assert list(pipeline.heads.HEADS)") & {"torch", "sklearn", "scipy"}


def test_importing_the_package_imports_no_numpy():
    code = "import sys, pipeline.heads; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["logistic", "ridge", "lda", "nearest-centroid", "gaussian-nb", "knn"])
def test_heads_solved_by_numpy_train_without_importing_scikit_learn(name):
    assert not modules_after(FIT.format(name=name)) & {"sklearn", "torch"}


def test_scikit_learn_heads_train_without_torch():
    names = [name for name, entry in HEADS.items() if not entry.needs_torch]
    assert len(names) >= 10
    assert "torch" not in modules_after("\n".join(FIT.format(name=name) for name in names))


@pytest.mark.parametrize("name", [name for name, entry in HEADS.items() if entry.needs_torch])
def test_torch_heads_train_with_neither_torchvision_nor_timm(name):
    found = modules_after(FIT.format(name=name))
    assert "torch" in found
    assert not found & {"torchvision", "timm"}
