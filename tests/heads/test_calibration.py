"""Probabilities mean what they say, sets hold the truth as often as promised, strange images are told."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.core.errors import HeadError
from pipeline.evaluation.metrics import evaluate
from pipeline.heads import (
    calibrate,
    conformal_threshold,
    fit_out_of_distribution,
    load_head,
    make_head,
    prediction_sets,
    probabilities,
    save_head,
)
from pipeline.heads.calibration import out_of_fold_probabilities
from pipeline.heads.scores import fit_temperature, softmax


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X = X + np.random.default_rng(1).normal(scale=4, size=X.shape)
    return X[order], y[order]


def drawn(n=4000, k=5, seed=0):
    """Return scores and labels drawn from their softmax: perfectly calibrated at temperature 1."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2, size=(n, k))
    return scores, (softmax(scores).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


@pytest.mark.parametrize("wrong_by", [0.01, 0.3, 1.0, 50.0, 1e4])
def test_temperature_undoes_any_overconfidence(wrong_by):
    scores, codes = drawn()
    assert fit_temperature(scores * wrong_by, codes) == pytest.approx(wrong_by, rel=0.07)


@pytest.mark.parametrize("n", [10, 1000])
def test_rows_that_are_all_right_do_not_make_the_next_one_certain(n):
    scores = np.random.default_rng(0).uniform(0.5, 1.5, size=(n, 1)) * [[1.0, -1.0]]
    found = softmax(scores / fit_temperature(scores, np.zeros(n, int)))
    assert 1 - 3 / n < found[:, 0].mean() < 1 - 0.3 / n


@pytest.mark.parametrize("name", ["gaussian-nb", "lda", "logistic"])
@pytest.mark.parametrize("with_val", [True, False])
def test_calibrated_head_keeps_its_labels_and_loses_less_on_unseen_rows(digits, name, with_val):
    X, y = digits
    settings = {"smoothing": 1e-9} if name == "gaussian-nb" else {}  # which is far too sure of itself
    head = make_head(name, **settings).fit(X[:600], y[:600])
    before, labels = evaluate(y[1000:], head.predict_proba(X[1000:])), head.predict(X[1000:])
    held_out = {"X_val": X[600:1000], "y_val": y[600:1000]} if with_val else {}
    report = calibrate(head, X[:600], y[:600], **held_out)
    after = evaluate(y[1000:], head.predict_proba(X[1000:]))
    np.testing.assert_array_equal(head.predict(X[1000:]), labels)
    assert after["log_loss"] <= before["log_loss"] + 0.01
    assert report["after"]["log_loss"] <= report["before"]["log_loss"]
    assert report["selection"] == ("val" if with_val else "cv")
    if name == "gaussian-nb":
        assert after["ece"] < before["ece"] / 2


def test_report_before_and_after_is_the_heads_own(digits):
    X, y = digits
    head = make_head("gaussian-nb").fit(X[:600], y[:600])
    before = evaluate(y[600:], probabilities(head, X[600:], 10))
    report = calibrate(head, X[:600], y[:600], X_val=X[600:], y_val=y[600:])
    after = evaluate(y[600:], probabilities(head, X[600:], 10))
    for figures, expected in ((report["before"], before), (report["after"], after)):
        for name, value in figures.items():
            assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-9)


def test_out_of_fold_probabilities_never_saw_their_row(digits):
    X, y = digits[0][:100], digits[1][:100]
    nearest = make_head("knn", k=1)  # knows its training rows by heart
    assert (nearest.fit(X, y).predict(X) == y).all()
    found = out_of_fold_probabilities(nearest, X, y, 10)
    assert (found.argmax(axis=1) == y).mean() < 0.95


def test_calibrating_on_unknown_classes_alone_is_refused(digits):
    X, y = digits
    head = make_head("lda").fit(X[y < 3], y[y < 3])
    with pytest.raises(HeadError, match="nothing to calibrate"):
        calibrate(head, X[y < 3], y[y < 3], X_val=X[y == 7], y_val=y[y == 7])


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("wrong_by", [0.3, 3.0])
def test_sets_hold_the_truth_as_often_as_asked_even_if_the_head_is_wrong(coverage, wrong_by):
    held = []
    for seed in range(150):
        scores, labels = drawn(400, seed=seed)
        found = softmax(scores * wrong_by)
        threshold = conformal_threshold(found[:200], labels[:200], coverage)
        held.append((found[200:] >= threshold)[np.arange(200), labels[200:]].mean())
    assert coverage - 0.01 <= np.mean(held) <= coverage + 0.02


def test_threshold_by_hand_and_too_few_rows_allow_everything():
    found = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 0, 0, 0])  # own probabilities 0.2, 0.6, 0.7, 0.9
    assert conformal_threshold(found, labels, 0.8) == 0.2  # one of five may be lower
    assert conformal_threshold(found, labels, 0.6) == 0.6
    assert conformal_threshold(found, labels, 0.9) == 0.0
    assert prediction_sets(found, 0.35).tolist() == [[True, False], [True, True], [True, False], [False, True]]
    assert prediction_sets(found, 0.95).sum(axis=1).tolist() == [1, 1, 1, 1]
    with pytest.raises(HeadError, match="coverage is 1"):
        conformal_threshold(found, labels, 1.0)


def test_familiar_rows_pass_and_strange_ones_are_told(digits):
    X, y = digits
    known = fit_out_of_distribution(X[y < 8][:600].astype(np.float32), share=0.05)
    rng = np.random.default_rng(0)
    assert known.unlike(X[y < 8][600:]).mean() < 0.12
    assert known.unlike(rng.normal(8, 5, size=(200, 64))).mean() > 0.9


def test_familiarity_keeps_a_sample_of_many_rows_and_bears_a_single_one(digits):
    X, _ = digits
    assert fit_out_of_distribution(X, most=50).rows.shape == (50, 64)
    assert not fit_out_of_distribution(X[:1]).unlike(X[:5]).any()


def test_temperature_and_familiarity_are_saved_with_the_head(digits, tmp_path):
    X, y = digits
    head = make_head("lda").fit(X[:300], y[:300])
    calibrate(head, X[:300], y[:300], X_val=X[300:600], y_val=y[300:600])
    head.familiarity_ = fit_out_of_distribution(X[:300])
    save_head(head, tmp_path)
    again, _ = load_head(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.familiarity_.similarity(X), head.familiarity_.similarity(X))
    assert again.familiarity_.threshold == head.familiarity_.threshold


def test_a_row_that_a_fold_scales_beyond_all_measure_does_not_flatten_the_others():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [40, 9, 2])
    centres = rng.normal(size=(3, 60)) * 2

    def sample(labels: np.ndarray) -> np.ndarray:
        # columns that are silent but for a few images, as those of a network that has seen other things are
        silent = (rng.random((len(labels), 20)) < 0.01) * rng.exponential(1, (len(labels), 20))
        return np.concatenate([centres[labels] + rng.normal(size=(len(labels), 60)) * 2, silent + rng.normal(
            scale=1e-4, size=silent.shape)], axis=1).astype(np.float32)  # fmt: skip

    X, truth = sample(y), np.repeat([0, 1, 2], 100)
    X_new = sample(truth)
    head = make_head("linear", seed=1).fit(X, y)
    before = evaluate(truth, probabilities(head, X_new, 3))["log_loss"]
    worst = out_of_fold_probabilities(head, X, y, 3)[np.arange(len(y)), y].min()
    report = calibrate(head, X, y)
    assert worst < 1e-30, "the case is the one that is meant"
    assert report["temperature"] < 10
    assert evaluate(truth, probabilities(head, X_new, 3))["log_loss"] < before + 0.1


def test_a_temperature_that_makes_nothing_better_is_not_applied():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = (rng.normal(size=(60, 5)) + 8 * y[:, None]).astype(np.float32)
    head = make_head("logistic", C=1.0).fit(X, y)
    before = head.predict_proba(X)
    report = calibrate(head, X, y)
    assert report["temperature"] == 1 and report["before"] == report["after"]
    np.testing.assert_array_equal(head.predict_proba(X), before)
