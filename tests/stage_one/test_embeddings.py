"""Features from elsewhere as a cache: heads, sweeps, comparison and audit work on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import pipeline
from pipeline.cli import main
from pipeline.core.errors import DataError, PipelineError

X, y = load_digits(n_class=3, return_X_y=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_an_array_becomes_a_cache_with_the_very_rows_and_its_splits_stay():
    done = pipeline.cache_embeddings(X, y, source="digits", test_fraction=0.25)
    with done.open() as cache:
        np.testing.assert_array_equal(cache.read_rows(), X.astype(np.float32))
        assert cache.classes == ("0", "1", "2") and cache.labels.tolist() == y.tolist()
        before = dict(zip(cache.paths, cache.splits.tolist(), strict=True))
        assert 0.24 < np.mean(cache.splits == "test") < 0.26
    assert pipeline.cache_embeddings(X, y, source="digits", test_fraction=0.25).computed == 0
    both, labels = np.concatenate([X, X[::7] + 1]), [*y, *y[::7]]
    more = pipeline.cache_embeddings(both, labels, source="digits", test_fraction=0.25)
    with more.open() as cache:
        assert before.items() <= dict(zip(cache.paths, cache.splits.tolist(), strict=True)).items()


def test_what_is_given_is_taken_as_it_stands():
    splits = ["train", "val"] * (len(y) // 2) + ["none"] * (len(y) % 2)
    names = [f"text {number}" for number in range(len(y))]
    labels = [None if number == 4 else "abc"[label] for number, label in enumerate(y)]
    views = np.stack([X, X + 1], axis=1).astype(np.float16)
    done = pipeline.cache_embeddings(views, labels, splits, paths=names, dataset_name="texts")
    assert done.path.parent.name == "texts"
    with done.open() as cache:
        assert cache.shape == (len(y), 2, 64) and cache.dtype == np.float16 and cache.paths == names
        assert cache.labels[4] == -1 and cache.splits[:2].tolist() == ["train", "val"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X[:5], y[:4]), "5 rows, 4 labels"),
        ((X[:2, 0],), r"not float64 \(2,\)"),
        ((np.array([["a"]]),), "must be numbers"),
        ((np.full((3, 2), np.nan), [0, 1, 0]), "3 of 3 rows hold NaN or infinity, the first at 0"),
        ((X[:2], [0, 1], ["train", "dev"]), "Unknown split 'dev'"),
        (("nothing.npy",), "Cannot read .*nothing.npy"),
        (("table.csv",), "read from .npy and .parquet"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(given, message):
    with pytest.raises(DataError, match=message):
        pipeline.cache_embeddings(*given)


def test_heads_sweeps_comparison_curves_audit_and_reports_work_on_it():
    features = pipeline.cache_embeddings(X, y, source="digits").path
    runs = [pipeline.train_head("logistic", features=features),
            pipeline.train_head("knn", features=features, sweep=pipeline.Sweep({"k": [1, 5]}))]  # fmt: skip
    assert all(run.metrics["splits"]["val"]["accuracy"] > 0.95 for run in runs)
    assert len(pipeline.compare()) == 2
    assert pipeline.learning_curve(["ridge"], features=features)["points"]
    assert pipeline.audit(features=features)["images"] == len(y)
    assert pipeline.report(runs[0]).is_file()
    with pytest.raises(PipelineError, match=r"was trained on features that 'digits' made elsewhere"):
        pipeline.predict(np.zeros((8, 8, 3), np.uint8), run=runs[0])


def test_files_come_in_by_the_command_line(capsys):
    np.save("rows.npy", X)
    Path("labels.csv").write_text("text,label\n" + "".join(f"t{number},{label}\n" for number, label in enumerate(y)))
    assert main(["cache", "import", "rows.npy", "--labels", "labels.csv", "--source", "digits"]) == 0
    assert "--features" in capsys.readouterr().out
    (path,) = Path("cache/rows").glob("digits-*.h5")
    assert main(["train-head", "--features", str(path)]) == 0
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"embedding": X.tolist(), "label": y, "split": ["train", "val", "test"] * (len(y) // 3)
                                  + ["train"] * (len(y) % 3)}), "rows.parquet")  # fmt: skip
    with pipeline.cache_embeddings("rows.parquet", dataset_name="parquet").open() as cache:
        np.testing.assert_array_equal(cache.read_rows(), X.astype(np.float32))
        assert cache.splits[:3].tolist() == ["train", "val", "test"]
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    assert main(["cache", "import", "objects.npy"]) == 2
