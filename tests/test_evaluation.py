"""The figures of every run, against scikit-learn, values worked out by hand, and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from pipeline.evaluation import EvaluationError, evaluate, wilson_interval


def sample(n=200, k=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, n), rng.dirichlet(np.ones(k), n)


def test_figures_agree_with_scikit_learn():
    labels, probabilities = sample()
    found, predictions = evaluate(labels, probabilities), probabilities.argmax(axis=1)
    assert found["n"] == 200
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, probabilities))


def test_absent_classes_change_nothing_but_are_counted_when_predicted():
    labels = np.array([0, 0, 2, 2])
    probabilities = np.eye(5)[[0, 3, 2, 2]]
    found = evaluate(labels, probabilities)
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    # classes 0, 2 and 3 occur or are predicted: F1 of 2/3, 1 and 0
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_result_is_plain_json():
    assert json.loads(json.dumps(evaluate(*sample()))).keys() == {
        "n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "log_loss",
    }


def test_certain_and_wrong_costs_much_but_not_everything():
    assert 30 < evaluate(np.array([0]), np.array([[0.0, 1.0]]))["log_loss"] < 40


@pytest.mark.parametrize(("correct", "n"), [(146, 153), (0, 10), (10, 10), (1, 1), (500, 1000)])
def test_wilson_interval_is_scipys(correct, n):
    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_wilson_interval_holds_the_truth_95_times_in_100(share):
    rng = np.random.default_rng(1)
    inside = 0
    for correct in rng.binomial(153, share, 4000):
        low, high = wilson_interval(int(correct), 153)
        inside += low <= share <= high
    assert inside / 4000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("labels", "probabilities", "message"), [
    ([], np.empty((0, 2)), "no labelled row"),
    ([0, 1], np.ones((3, 2)), "do not belong together"),
    ([0, 2], np.ones((2, 2)), "go from 0 to 2"),
    ([-1, 0], np.ones((2, 2)), "unlabelled rows"),
    ([0.0, 1.0], np.ones((2, 2)), "must be class ids"),
    ([0, 1], np.full((2, 2), np.nan), "NaN"),
])
def test_what_does_not_fit_is_refused(labels, probabilities, message):
    labels = np.array(labels) if labels else np.array([], int)
    with pytest.raises(EvaluationError, match=message):
        evaluate(labels, probabilities)
