"""Rows that are read anew at every walk teach a head the same as rows in memory."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.core.errors import HeadError
from pipeline.heads import HEADS, make_head
from pipeline.heads import rows as rows_module
from pipeline.heads.rows import StreamedRows
from pipeline.heads.scaling import SCALINGS

STREAMS = [name for name, entry in HEADS.items() if entry.streams]
EXACT = [name for name in STREAMS if not HEADS[name].needs_torch]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(rows_module, "CHUNK_VALUES", 64 * 50)  # 50 rows of the digits at a time
    monkeypatch.setattr(rows_module, "BUFFER_VALUES", 64 * 600)
    monkeypatch.setattr(rows_module, "RUN", 16)


def digits(dtype=np.float16):
    """Return 1,797 rows sorted by class, as folders of classes give them."""
    X, y = load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")
    return X[order].astype(dtype), y[order]


def streamed(X):
    return StreamedRows(lambda positions: X[positions], X.shape)


def test_the_heads_that_stream_are_those_made_of_sums_and_steps():
    assert set(STREAMS) == {"linear", "logistic", "ridge", "lda", "nearest-centroid", "gaussian-nb", "mlp"}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_streamed_rows_give_the_same_head_as_rows_in_memory(name, scaling, class_weight):
    if class_weight and "class_weight" not in HEADS[name].settings:
        pytest.skip("it has no class weights")
    X, y = digits()
    X, y = X[100:], y[100:]
    heads = [make_head(name, scaling=scaling, class_weight=class_weight).fit(rows, y) for rows in (X, streamed(X))]
    # the optimum is flat: both solutions are within the solver's tolerance, one in float64, one in float32
    tolerance = 2e-3 if name == "logistic" else 1e-5
    np.testing.assert_allclose(heads[1].predict_proba(X), heads[0].predict_proba(X), atol=tolerance)
    assert heads[1].temperature_ == pytest.approx(heads[0].temperature_, rel=1e-4)
    assert heads[1].n_features_in_ == 64


@pytest.mark.parametrize("C", [1e-4, 1.0])
def test_streamed_softmax_regression_reaches_the_same_optimum(C):
    X, y = digits(np.float32)
    costs = []
    for rows in (X, streamed(X)):
        head = make_head("logistic", C=C, scaling="none").fit(rows, y)
        own = np.log(head.predict_proba(X))[np.arange(len(y)), y]
        costs.append(-C * own.sum() + np.square(head.coef_).sum() / 2)
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(STREAMS) - set(EXACT)))
def test_rows_streamed_through_a_shuffle_buffer_train_as_well_as_rows_in_memory(name):
    X, y = digits()
    val = np.arange(len(y)) % 5 == 0
    settings = {"epochs": 8, "lr": 0.02 if name == "linear" else 0.002}
    scores = [make_head(name, **settings).fit(wrap(X[~val]), y[~val], wrap(X[val]), y[val]).history_[-1]
              for wrap in (lambda X: X, streamed)]
    assert scores[1]["val_accuracy"] > 0.9  # sorted by class and hardly shuffled, it would forget most of them
    assert scores[1]["val_accuracy"] == pytest.approx(scores[0]["val_accuracy"], abs=0.02)
    assert scores[1]["train_loss"] == pytest.approx(scores[0]["train_loss"], rel=0.2)


@pytest.mark.parametrize("name", STREAMS)
def test_same_seed_gives_the_same_weights_streamed(name):
    X, y = digits()
    settings = {"epochs": 2} if HEADS[name].needs_torch else {}
    found = [make_head(name, seed=1, **settings).fit(streamed(X), y).predict_proba(X) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_shuffled_buffers_hold_every_row_once_and_rows_from_everywhere():
    rows = StreamedRows(lambda positions: np.zeros((len(positions), 64), np.float32), (20_000, 64))
    buffers = list(rows.buffers(np.random.default_rng(0)))
    assert len(buffers) == 34
    assert max(map(len, buffers)) <= 64 * 600 // 64 + 16
    assert sorted(np.concatenate(buffers)) == list(range(20_000))
    assert all((np.diff(buffer) > 0).all() for buffer in buffers)
    assert all(len(np.unique(buffer // 10_000)) == 2 for buffer in buffers)


@pytest.mark.parametrize("name", sorted(set(HEADS) - set(STREAMS)))
def test_heads_that_need_all_rows_at_once_say_so(name):
    X, y = digits()
    with pytest.raises(HeadError, match="needs all rows in memory"):
        make_head(name).fit(streamed(X), y)


@pytest.mark.parametrize("name", STREAMS)
def test_streamed_features_that_are_no_numbers_are_refused(name):
    X, y = digits()
    X[1234, 5] = np.nan
    with pytest.raises(HeadError, match="NaN or infinity"):
        make_head(name).fit(streamed(X), y)


def test_an_error_while_reading_reaches_the_caller():
    X, y = digits()

    def read(positions):
        if positions[-1] > 1000:
            raise OSError("disk gone")
        return X[positions]

    with pytest.raises(OSError, match="disk gone"):
        make_head("ridge").fit(StreamedRows(read, X.shape), y)


def test_lbfgs_of_torch_refuses_streamed_rows():
    X, y = digits()
    with pytest.raises(HeadError, match="takes all rows at once"):
        make_head("linear", optimizer="lbfgs").fit(streamed(X), y)
