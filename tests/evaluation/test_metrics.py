"""The figures of every run, against scikit-learn, values worked out by hand, and simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from pipeline.evaluation import metrics as evaluation
from pipeline.evaluation.metrics import (
    EvaluationError,
    brier_score,
    calibration_error,
    evaluate,
    reliability,
    wilson_interval,
)


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
        "n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1", "log_loss", "balanced_accuracy_ci95",
        "macro_f1_ci95", "log_loss_ci95", "brier", "brier_ci95", "ece", "ece_ci95", "abstaining", "per_class",
        "confusion",
    }
    six = evaluate(*sample(k=6))
    assert six["top5_ci95"] == list(wilson_interval(round(six["top5"] * 200), 200))
    assert "confusion" not in evaluate(*sample(k=201))


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


def test_brier_score_and_top_five_agree_with_scikit_learn():
    labels, probabilities = sample(n=500, k=9)
    found = evaluate(labels, probabilities)
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, probabilities, scale_by_half=False))
    assert found["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, probabilities, k=5))


def test_of_equal_probabilities_the_first_classes_are_the_top_five():
    assert evaluate(np.arange(6), np.full((6, 6), 1 / 6))["top5"] == pytest.approx(5 / 6)


def test_figures_of_each_class_and_the_confusion_matrix_agree_with_scikit_learn():
    labels, probabilities = sample(k=4)
    found, predictions = evaluate(labels, probabilities), probabilities.argmax(axis=1)
    assert found["confusion"] == metrics.confusion_matrix(labels, predictions).tolist()
    precision, recall, f1, n = metrics.precision_recall_fscore_support(labels, predictions)
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("n", n)):
        assert [one[name] for one in found["per_class"]] == pytest.approx(expected.tolist())


def test_a_class_that_never_occurs_has_no_recall_and_one_never_predicted_no_precision():
    found = evaluate(np.array([0, 0, 1]), np.eye(3)[[0, 0, 0]])["per_class"]
    assert found[1] == {"n": 1, "predicted": 0, "precision": None, "recall": 0.0, "f1": 0.0}
    assert found[2] == {"n": 0, "predicted": 0, "precision": None, "recall": None, "f1": None}


def test_calibration_error_by_hand():
    # bins of a tenth: 2 rows at .55 (one right), 2 at .95 (both right): (2 * .05 + 2 * .05) / 4
    sure = np.array([0.55, 0.55, 0.95, 0.95])
    right = np.array([True, False, True, True])
    assert calibration_error(sure, right, bins=10) == pytest.approx(0.05)
    assert [bin["n"] for bin in reliability(sure, right, bins=10)] == [2, 2]
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_same_rows_give_the_same_intervals():
    assert evaluate(*sample()) == evaluate(*sample())
    assert evaluate(*sample())["log_loss_ci95"] != evaluate(*sample(), seed=1)["log_loss_ci95"]


def test_intervals_are_those_of_resampled_rows():
    labels, probabilities = sample(n=300, k=3)
    rng, predictions = np.random.default_rng(5), probabilities.argmax(axis=1)
    draws = [rng.integers(0, 300, 300) for _ in range(500)]
    for name, score in (
        ("balanced_accuracy", lambda rows: metrics.balanced_accuracy_score(labels[rows], predictions[rows])),
        ("macro_f1", lambda rows: metrics.f1_score(labels[rows], predictions[rows], average="macro")),
        ("log_loss", lambda rows: metrics.log_loss(labels[rows], probabilities[rows])),
        ("brier", lambda rows: metrics.brier_score_loss(labels[rows], probabilities[rows], scale_by_half=False)),
    ):
        expected = np.quantile([score(rows) for rows in draws], (0.025, 0.975))
        found = evaluate(labels, probabilities)[f"{name}_ci95"]
        assert found == pytest.approx(expected, abs=0.2 * (expected[1] - expected[0])), name


def test_bootstrap_intervals_hold_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(2)
    # a true class is predicted with these probabilities, and this certainty
    model, sure = np.array([[0.9, 0.07, 0.03], [0.15, 0.8, 0.05], [0.1, 0.2, 0.7]]), 0.8
    many = rng.choice(3, 200_000, p=[0.5, 0.3, 0.2])
    certain = np.full((3, 3), 0.1) + (sure - 0.1) * np.eye(3)

    def predicted(labels):
        return certain[(rng.random((len(labels), 1)) > model[labels].cumsum(axis=1)).sum(axis=1)]

    truth = evaluate(many, predicted(many))
    inside = dict.fromkeys(("balanced_accuracy", "macro_f1", "log_loss"), 0)
    for _ in range(200):
        labels = rng.choice(3, 200, p=[0.5, 0.3, 0.2])
        found = evaluate(labels, predicted(labels))
        for name in inside:
            low, high = found[f"{name}_ci95"]
            inside[name] += low <= truth[name] <= high
    # 4 standard deviations of 200 trials at 95 % are 6.2 points
    assert all(0.89 <= count / 200 <= 1 for count in inside.values()), inside


@pytest.mark.parametrize("sharpened", [1.0, 2.0, 0.6])
def test_intervals_of_the_calibration_hold_the_truth_about_95_times_in_100(sharpened):
    rng = np.random.default_rng(3)

    def said(n):
        true = rng.dirichlet(np.full(3, 0.5), n)
        labels = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 2)
        return labels, true**sharpened / (true**sharpened).sum(axis=1, keepdims=True)

    labels, probabilities = said(200_000)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0 if sharpened == 1 else calibration_error(sure, right)
    truth = {"ece": error, "brier": brier_score(labels, probabilities)}
    inside = dict.fromkeys(truth, 0)
    for _ in range(100):
        found = evaluate(*said(300))
        for name in truth:
            low, high = found[f"{name}_ci95"]
            assert low <= found[name] <= high
            inside[name] += low <= truth[name] <= high
    # 4 standard deviations of 100 trials at 95 % are 8.7 points
    assert all(count >= 86 for count in inside.values()), inside


def test_intervals_of_many_images_are_those_of_drawing_them_one_by_one(monkeypatch):
    rng = np.random.default_rng(5)
    probabilities = rng.dirichlet(np.full(4, 0.4), 6000)
    labels = np.where(rng.random(6000) < 0.8, probabilities.argmax(axis=1), rng.integers(0, 4, 6000))
    together = evaluate(labels, probabilities)
    monkeypatch.setattr(evaluation, "MANY", 6000)
    one_by_one = evaluate(labels, probabilities)
    for name in ("log_loss_ci95", "brier_ci95", "ece_ci95"):
        width = np.ptp(one_by_one[name])
        # each end is uncertain by about 0.09 standard errors, which are a quarter of the width
        assert np.abs(np.subtract(together[name], one_by_one[name])).max() < 0.12 * width
        assert together[name] != one_by_one[name]


def test_no_error_seen_is_not_called_certain():
    found = evaluate(np.array([0, 1] * 10), np.eye(2)[[0, 1] * 10])
    assert found["balanced_accuracy_ci95"] == found["macro_f1_ci95"] == list(wilson_interval(20, 20))


def test_who_declines_below_a_probability_answers_less_and_better():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.95, 0.05], [0.8, 0.2], [0.45, 0.55], [0.3, 0.7]])
    found = {one["below"]: one for one in evaluate(labels, probabilities)["abstaining"]}
    assert (found[0.5]["answered"], found[0.5]["accuracy"]) == (1.0, 0.75)
    assert (found[0.7]["answered"], found[0.7]["accuracy"]) == (0.75, 1.0)  # 0.7 itself is an answer
    assert (found[0.95]["answered"], found[0.95]["accuracy"]) == (0.25, 1.0)
    assert found[0.99] == {"below": 0.99, "answered": 0.0, "accuracy": None, "accuracy_ci95": None}
