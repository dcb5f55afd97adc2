"""Paired tests against scipy, statsmodels and simulation, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.core.errors import RunError
from pipeline.evaluation.comparison import (
    Paired,
    compared,
    corrected,
    images_needed,
    mcnemar,
    pair,
    paired_interval,
    verdict,
)


def rows(names, labels, predictions):
    return [{"filename": name, "label": label, "prediction": predicted}
            for name, label, predicted in zip(names, labels, predictions, strict=True)]


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (2, 9), (40, 71), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_is_that_of_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    assert mcnemar(7, 19) == pytest.approx(tables.mcnemar([[100, 7], [19, 30]], exact=True).pvalue)


@pytest.mark.parametrize("comparisons", [1, 2, 11])
def test_interval_without_zero_and_verdict_never_contradict_each_other(comparisons):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        n = int(rng.integers(5, 400))
        gained, lost, _ = rng.multinomial(n, rng.dirichlet([0.5, 0.5, 4])).tolist()
        found = Paired(n, gained, lost)
        low, high = found.interval(comparisons)
        certain = corrected(found.p_value, comparisons) < 0.05
        assert (low > 0 or high < 0) is certain, (n, gained, lost)
        assert low <= found.difference * (1 + 1e-9) <= high or abs(found.difference) < 0.02 or low < 0 < high
        said = verdict(found, ("a", "b"), (1.0, 1.0), comparisons)
        assert ("not distinguishable" in said) is not certain
        seen.add(certain)
    assert seen == {True, False}


def test_intervals_of_many_comparisons_are_wider():
    widths = [np.diff(paired_interval(200, 12, 3, comparisons))[0] for comparisons in (1, 5, 50)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


@pytest.mark.parametrize("n", [153, 2000])
@pytest.mark.parametrize(("gain", "loss"), [
    (0.02, 0.02), (0.06, 0.03), (0.2, 0.1), (0.01, 0.0), (0.1, 0.0), (0.05, 0.4)])
def test_the_interval_holds_the_true_difference_at_least_95_times_in_100(gain, loss, n):
    rng, inside = np.random.default_rng(3), 0
    for gained, lost, _ in rng.multinomial(n, [gain, loss, 1 - gain - loss], size=400):
        low, high = paired_interval(n, int(gained), int(lost))
        inside += low <= gain - loss <= high
    assert inside / 400 >= 0.906  # 4 standard deviations below


def test_two_that_never_differed_on_few_images_are_not_known_to_be_equal():
    low, high = paired_interval(20, 0, 0)
    assert low < -0.04 and high > 0.04


def test_the_images_needed_find_the_difference_4_times_in_5():
    needed = images_needed(153, 9, 5)
    rng, outcomes = np.random.default_rng(4), np.array([9, 5, 139]) / 153
    found = [mcnemar(int(gained), int(lost)) < 0.05 for gained, lost, _ in rng.multinomial(needed, outcomes, size=600)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert images_needed(153, 5, 5) is None


def test_rows_are_matched_by_file_name_not_by_order():
    first = rows(["a", "b", "c"], "xyx", "xyx")
    second = rows(["c", "b", "a"], "xyx", "yyx")
    assert pair(first, second) == Paired(n=3, gained=1, lost=0)


def test_images_of_one_alone_or_of_another_label_are_left_out_and_counted():
    found = pair(rows("abc", "xyx", "xyx"), rows("bcd", "yyx", "xyx"))
    assert found == Paired(n=1, gained=1, lost=0, unmatched=3)
    assert pair(rows("a", "x", "x"), rows("b", "x", "x")) is None


def test_the_sentence_says_what_is_known():
    same = verdict(Paired(153, 9, 8), ("whole", "logistic"), (410.0, 10.0))
    assert same.startswith("whole vs logistic: +0.7 points (")
    assert "41 times the seconds: not distinguishable on 153 images; about " in same
    better = verdict(Paired(1000, 90, 10), ("a", "b"), (1.0, 1.0))
    assert "+8.0 points" in better and "better on 1,000 images" in better and "as many seconds" in better
    assert "worse on" in verdict(Paired(1000, 10, 90), ("a", "b"), (1.0, 1.0))
    assert "4.0 times as fast" in verdict(Paired(1000, 10, 90), ("a", "b"), (1.0, 4.0))
    assert "2 images that only one" in verdict(Paired(10, 1, 1, unmatched=2), ("a", "b"), (1.0, 1.0))


def run(name, dataset="pets"):
    return {"name": name, "dataset": dataset, "split": "val", "seconds": {"total": 2.0}}


def test_each_run_is_compared_with_the_best_of_its_data_set_or_with_the_baseline_alone():
    names, labels = list(map(str, range(100))), "xy" * 50
    predictions = {"good": labels, "fair": "yx" * 10 + labels[20:], "bad": "yx" * 50, "other": labels}
    runs = [run("good"), run("fair"), run("bad"), run("other", "cars")]
    tables = {name: rows(names, labels, predicted) for name, predicted in predictions.items()}
    found = {each["name"]: each for each in compared(runs, tables)}
    assert found["good"]["versus_best"] is None and found["other"]["versus_best"] is None
    worst = found["bad"]["versus_best"]
    assert (worst["run"], worst["difference"], worst["distinguishable"]) == ("good", -1.0, True)
    assert worst["p_value_corrected"] == pytest.approx(2 * worst["p_value"])
    assert worst["comparisons"] == 2
    against = {each["name"]: each for each in compared(runs, tables, "fair")}
    assert against["fair"]["versus_baseline"] is None
    assert against["good"]["versus_baseline"]["difference"] == pytest.approx(0.2)
    assert "versus_best" not in against["good"]  # with a baseline alone
    assert "versus_baseline" not in against["other"] and against["other"]["versus_best"] is None


def test_runs_without_a_common_image_are_not_compared():
    found = compared([run("a"), run("b")], {"a": rows("1", "x", "x"), "b": rows("2", "x", "x")})
    assert "no test image in common" in found[1]["versus_best"]["sentence"]


def test_an_unknown_baseline_is_refused():
    with pytest.raises(RunError, match="'c' is not among"):
        compared([run("a")], {"a": rows("1", "x", "x")}, "c")
