"""Settings are chosen on the training rows or on validation rows, finished fits survive a kill, figures are fair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from pipeline.core.errors import HeadError
from pipeline.core.registry import Registry
from pipeline.evaluation.metrics import evaluate
from pipeline.heads import HEADS, make_head, sweep_head
from pipeline.heads.penalty_path import walk
from pipeline.heads.solver import CROSS_ENTROPY, SQUARED_HINGE, LinearProblem, minimize
from pipeline.heads.sweep import METRICS, UNREACHED, chosen, combinations, in_reach


@pytest.fixture(scope="module")
def rows():
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    return X[:400] + rng.normal(scale=4, size=(400, 64)), y[:400]


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self):
        self.total, self.steps = None, []

    def __call__(self, total, desc, unit):
        self.total = total
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n):
        self.steps.append(n)


def test_scores_are_those_of_cross_validation_by_hand(rows):
    X, y = rows
    found = sweep_head("ridge", X, y, grid={"alpha": [10.0, 1e9]}, folds=4, seed=3, n_jobs=1)
    for row in found.rows:
        scores = []
        for train, test in StratifiedKFold(4, shuffle=True, random_state=3).split(X, y):
            head = make_head("ridge", alpha=row["alpha"]).fit(X[train], y[train])
            scores.append(evaluate(y[test], head.predict_proba(X[test])))
        for metric in METRICS:
            assert row[metric] == pytest.approx(np.mean([one[metric] for one in scores]))
        assert row["error"] == pytest.approx(np.std([one["accuracy"] for one in scores], ddof=1) / 2)
    assert found.selection == "cv"
    assert found.settings == {"alpha": 10.0}
    assert [row["chosen"] for row in found.rows] == [True, False]


def test_refit_uses_all_training_rows_with_the_chosen_settings(rows):
    X, y = rows
    found = sweep_head("lda", X, y, fixed={"scaling": "none"}, n_jobs=1)
    again = make_head("lda", scaling="none", **found.settings).fit(X, y)
    np.testing.assert_array_equal(found.head.predict_proba(X), again.predict_proba(X))
    assert len(found.rows) == len(HEADS["lda"].grid["shrinkage"])


def test_validation_rows_choose_but_are_not_trained_on(rows):
    X, y = rows
    found = sweep_head("ridge", X[:300], y[:300], X_val=X[300:], y_val=y[300:], grid={"alpha": [1.0, 1e6]}, n_jobs=1)
    expected = make_head("ridge", alpha=1.0).fit(X[:300], y[:300])
    assert found.selection == "val"
    np.testing.assert_array_equal(found.head.coef_, expected.coef_)
    score = evaluate(y[300:], expected.predict_proba(X[300:]))["accuracy"]
    assert found.rows[0]["accuracy"] == pytest.approx(score)
    assert found.rows[0]["error"] == pytest.approx(np.sqrt(score * (1 - score) / 100))


@pytest.mark.parametrize("name", ["logistic", "linear-svm"])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("n", [50, 300])  # fewer and more rows than features
def test_penalties_swept_together_decide_as_those_fitted_alone(rows, name, classes, n):
    X, y = (array[rows[1] < classes] for array in rows)
    Cs = (1e-3, 3e-3, 1e-2)
    path = make_head(name).fit_path(X[:n], y[:n], [{"C": C} for C in Cs])
    for C, head in zip(Cs, path, strict=True):
        single = make_head(name, C=C).fit(X[:n], y[:n])
        assert head.C == C
        assert (head.predict(X) == single.predict(X)).mean() >= 0.99
        assert np.sqrt(np.square(head.predict_proba(X) - single.predict_proba(X)).mean()) < 0.005


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, SQUARED_HINGE], ids=["softmax", "hinge"])
@pytest.mark.parametrize(("few", "excess"), [(True, 1e-4), (False, 0.02)])
def test_penalties_swept_together_are_near_their_optimum(rows, loss, few, excess, monkeypatch):
    X, y = rows
    if not few:  # many rows are computed in float32
        X = X.astype(np.float32)
        monkeypatch.setattr("pipeline.heads.solver.SMALL", 0)
    Z, weights = (X - X.mean(axis=0)) / 8, np.linspace(0.5, 1.5, len(y))
    problem, Cs = LinearProblem(Z, y, weights, 10, loss), [1e-5, 1e-3, 1e-1, 10.0]

    def objective(coef, intercept, C):
        scores = (Z @ coef.T + intercept).T[None]
        return loss.slope(scores, y, weights / weights.sum())[0] + np.square(coef).sum() * problem.penalty(C) / 2

    for C, found in zip(Cs, walk(problem, Cs), strict=True):
        best = objective(*problem.solve(C)[:2], C)
        assert found.reached
        assert best * (1 - 1e-5) <= objective(found.coef, found.intercept, C) <= best * (1 + excess)


class Problem(NamedTuple):
    """Rows of some shape, and what is special about them."""

    n: int
    width: int
    classes: int
    spread: float  # of the class centres: a large one makes rows separable
    special: str


PROBLEMS = [
    Problem(120, 20, 2, 1.0, ""), Problem(60, 200, 3, 1.0, ""), Problem(400, 30, 50, 3.0, ""),
    Problem(90, 15, 4, 30.0, "separable"), Problem(150, 20, 3, 1.0, "duplicated columns"),
    Problem(150, 20, 3, 1.0, "constant column"), Problem(200, 40, 5, 1.0, "float16"),
]


def problem_rows(problem):
    rng = np.random.default_rng(7)
    y = np.arange(problem.n) % problem.classes
    centres = rng.normal(scale=problem.spread, size=(problem.classes, problem.width))
    X = (centres[y] + rng.normal(scale=2, size=(problem.n, problem.width))).astype(np.float32)
    if problem.special == "duplicated columns":
        X[:, 1::2] = X[:, ::2]
    if problem.special == "constant column":
        X[:, 3] = 5
    return X.astype(np.float16) if problem.special == "float16" else X, y


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize(("scaling", "many"), [("standardize", False), ("none", False), ("standardize", True)])
def test_every_row_of_a_sweep_is_the_head_fitted_alone_and_no_other_rows_change_it(problem, scaling, many, monkeypatch):
    """Of what a row says nothing is copied from a stronger penalty, nor depends on what else was asked for."""
    X, y = problem_rows(problem)
    if many:
        monkeypatch.setattr("pipeline.heads.solver.SMALL", 0)
        monkeypatch.setattr("pipeline.heads.logistic.SMALL", 0)
    Cs = np.logspace(-4, 4, 5).tolist()
    fixed = {"scaling": scaling}
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))
    assert make_head("logistic", **fixed).fits_folds_together(X, y, folds, [{"C": 1.0}]) is (
        many and problem.n >= problem.width)
    found = sweep_head("logistic", X, y, grid={"C": Cs}, fixed=fixed, folds=3, n_jobs=1)
    some = sweep_head("logistic", X, y, grid={"C": [Cs[3], Cs[1]]}, fixed=fixed, folds=3, n_jobs=1)
    tolerance = 0.06 if many else 5e-3  # float32 is for many rows: of so few, each decides more
    reached = [row for row in found.rows if not row["reason"]]
    assert len(reached) == len(Cs)
    for row in reached:
        losses = [evaluate(y[test], make_head("logistic", C=row["C"], **fixed).fit(X[train], y[train])
                           .predict_proba(X[test]))["log_loss"] for train, test in folds]
        assert row["log_loss"] == pytest.approx(np.average(losses, weights=[len(test) for _, test in folds]),
                                                rel=tolerance)
    for row, same in ((found.rows[3], some.rows[0]), (found.rows[1], some.rows[1])):
        assert bool(row["reason"]) == bool(same["reason"])
        if not row["reason"]:
            assert same["log_loss"] == pytest.approx(row["log_loss"], rel=tolerance)
    assert len({row["log_loss"] for row in reached}) == len(reached)


def test_penalty_whose_optimum_was_not_reached_has_no_figures_and_is_not_chosen(rows, tmp_path):
    X, y = rows
    found = sweep_head("logistic", X, y, grid={"C": [1e-6, 1e-5, 1e3]}, fixed={"max_iter": 3}, metric="log_loss",
                       folds=3, n_jobs=1, folder=tmp_path)
    *good, last = found.rows
    assert last["reason"] == UNREACHED
    assert [last[name] for name in (*METRICS, "error")] == [None] * 5
    assert all(row["log_loss"] > 0 and not row["reason"] for row in good)
    assert found.settings == {"C": 1e-5}
    assert found.choice["without_figures"] == 1
    again = sweep_head("logistic", X, y, grid={"C": [1e-6, 1e-5, 1e3]}, fixed={"max_iter": 3}, metric="log_loss",
                       folds=3, n_jobs=1, folder=tmp_path)
    assert again.rows == found.rows  # as kept in the folder
    with pytest.raises(HeadError, match="No candidate can be chosen: the optimum was not reached"):
        sweep_head("logistic", X, y, grid={"C": [1e3]}, fixed={"max_iter": 1}, folds=3, n_jobs=1)


def test_lbfgs_finds_the_minimum_of_a_long_valley():
    bends, aim = np.array([1e-3, 1e3, 1.0]), np.array([3.0, -4.0, 2.0])

    def values(x):
        return (bends * (x - aim) ** 2).sum() / 2 + 1, bends * (x - aim)

    found = minimize(values, np.zeros(3), tolerance=1e-12, max_iter=100, memory=8, rounding=1e-12)
    assert found.reached
    np.testing.assert_allclose(found.place, aim, atol=1e-3)
    already = minimize(values, aim.copy(), tolerance=1e-12, max_iter=100, memory=8, rounding=1e-12)
    assert (already.iterations, already.reached) == (0, True)
    cut = minimize(values, np.zeros(3), tolerance=1e-12, max_iter=2, memory=8, rounding=1e-12)
    assert not cut.reached


@pytest.mark.parametrize("C", [-1.0, "much"])
def test_penalty_that_cannot_be_is_named_with_its_candidate(rows, C):
    with pytest.raises(HeadError, match=rf"With the settings {{'C': {C!r}}}: C is {C!r}"):
        sweep_head("logistic", *rows, grid={"C": [1.0, C]}, n_jobs=1)


def test_logistic_sweep_is_as_good_as_scikit_learns_and_takes_45_steps(rows):
    X, y = rows
    train, test = np.arange(300), np.arange(300, 400)
    found = sweep_head("logistic", X[train], y[train], n_jobs=1)
    mean, deviation = X[train].mean(axis=0), np.where(X[train].std(axis=0) > 0, X[train].std(axis=0), 1)
    Z = (X - mean) / deviation
    reference = LogisticRegressionCV(Cs=np.logspace(-6, 5, 45)[10:30], cv=5, max_iter=2000, l1_ratios=(0,),
                                     use_legacy_attributes=False, scoring="accuracy").fit(Z[train], y[train])
    assert len(found.rows) == 2 * 45  # with and without standardising
    assert found.head.score(X[test], y[test]) >= reference.score(Z[test], y[test]) - 0.02


def test_all_processes_give_the_same_as_one(rows):
    X, y = rows
    grid = {"k": [1, 5], "T": [0.07, 0.2]}
    one, two = (sweep_head("knn", X, y, grid=grid, n_jobs=n_jobs) for n_jobs in (1, 2))
    for a, b in zip(one.rows, two.rows, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_progress_counts_every_fit(rows):
    bar = Bar()
    sweep_head("nearest-centroid", *rows, folds=3, n_jobs=1, progress=bar)
    assert (bar.total, sum(bar.steps)) == (12, 12)


def test_progress_tells_each_fit_of_a_head_whose_fits_share_nothing(rows):
    bar, grid = Bar(), {"smoothing": [1e-9, 1e-6, 1e-3]}
    sweep_head("gaussian-nb", *rows, folds=2, grid=grid, n_jobs=1, progress=bar)
    assert bar.steps == [0, 1, 1, 1, 1, 1, 1]


def test_kernel_machines_that_share_distances_are_as_if_alone(rows):
    X, y = rows
    settings = [{"gamma_factor": 0.3, "C": 1.0}, {"gamma_factor": 3.0, "C": 10.0}, {"scaling": "l2"}]
    for one, head in zip(settings, make_head("svm-rbf").fit_path(X, y, settings), strict=True):
        alone = make_head("svm-rbf", **one).fit(X, y)
        assert np.array_equal(head.predict_proba(X), alone.predict_proba(X))


def test_finished_fits_are_not_done_again(rows, tmp_path):
    first = sweep_head("knn", *rows, grid={"k": [1, 5]}, folds=3, n_jobs=1, folder=tmp_path)
    bar = Bar()
    second = sweep_head("knn", *rows, grid={"k": [1, 5]}, folds=3, n_jobs=1, folder=tmp_path, progress=bar)
    assert second.rows == first.rows  # seconds included: nothing was fitted anew
    assert bar.steps == [6]
    third = Bar()
    sweep_head("knn", *rows, grid={"k": [1, 5, 9]}, folds=3, n_jobs=1, folder=tmp_path, progress=third)
    assert third.steps[0] == 6


@pytest.mark.parametrize("change", ["rows", "labels", "settings", "seed"])
def test_finished_fits_of_another_sweep_are_not_taken(rows, tmp_path, change):
    X, y = rows
    sweep_head("knn", X, y, grid={"k": [1]}, folds=3, n_jobs=1, folder=tmp_path)
    X2, y2 = X.copy(), y.copy()
    if change == "rows":
        X2[0, 0] += 1
    if change == "labels":
        y2[0] = (y2[0] + 1) % 10
    bar = Bar()
    sweep_head("knn", X2, y2, grid={"k": [1]}, folds=3, n_jobs=1, folder=tmp_path, progress=bar,
               seed=int(change == "seed"), fixed={"scaling": "l2"} if change == "settings" else None)
    assert bar.steps[0] == 0


def test_line_that_a_kill_cut_short_is_fitted_again(rows, tmp_path):
    first = sweep_head("knn", *rows, grid={"k": [1, 5]}, folds=3, n_jobs=1, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    bar = Bar()
    second = sweep_head("knn", *rows, grid={"k": [1, 5]}, folds=3, n_jobs=1, folder=tmp_path, progress=bar)
    assert bar.steps == [5, 1]
    assert [row["accuracy"] for row in second.rows] == [row["accuracy"] for row in first.rows]


KILLED = """
import numpy, sys
from sklearn.datasets import load_digits
from pipeline.heads import sweep_head
X, y = load_digits(return_X_y=True)
sweep_head("random-forest", X[:300], y[:300], n_jobs=1, folds=4, folder=sys.argv[1])
"""


def test_killed_sweep_goes_on_where_it_stopped(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    for _ in range(600):
        time.sleep(0.1)
        if any(len(file.read_bytes().splitlines()) >= 2 for file in tmp_path.iterdir()):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (file,) = tmp_path.iterdir()
    kept = [json.loads(line)["key"] for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    fits = 4 * len(combinations(HEADS["random-forest"].grid))
    assert 2 <= len(kept) < fits
    bar = Bar()
    X, y = load_digits(return_X_y=True)
    sweep_head("random-forest", X[:300], y[:300], n_jobs=1, folds=4, folder=tmp_path, progress=bar)
    assert bar.steps[0] == len(kept)
    assert sum(bar.steps) == fits


def table(accuracy, error=0.02, loss=None):
    loss = [0.5] * len(accuracy) if loss is None else loss
    return [{"accuracy": a, "log_loss": b, "error": error, "reason": ""} for a, b in zip(accuracy, loss, strict=True)]


def test_of_candidates_near_the_best_the_one_of_least_log_loss_wins_then_the_first():
    assert chosen(table([0.8, 0.9, 0.9], loss=[0.1, 0.6, 0.5]), "accuracy", False) == 2
    assert chosen(table([0.8, 0.89, 0.9], loss=[0.1, 0.4, 0.5]), "accuracy", False) == 1
    assert chosen(table([0.9, 0.9]), "accuracy", False) == 0
    assert chosen(table([0.8, 0.9], loss=[0.1, 0.6], error=0.0), "log_loss", False) == 0
    assert in_reach(table([0.8, 0.89, 0.9]), "accuracy") == [1, 2]


def test_one_standard_error_rule_takes_the_first_that_is_near_enough():
    assert chosen(table([0.85, 0.89, 0.9]), "accuracy", True) == 1
    assert chosen(table([0.85, 0.87, 0.9]), "accuracy", True) == 2


def test_combinations_vary_the_last_setting_fastest():
    assert combinations({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}
    ]
    assert combinations({}) == [{}]


def test_every_default_grid_is_understood_by_its_head():
    assert isinstance(HEADS, Registry)
    for name, entry in HEADS.items():
        assert set(entry.grid) <= set(entry.settings), name


def test_class_with_one_row_is_swept_all_the_same(rows):
    X, y = rows
    kept = np.r_[np.flatnonzero(y < 3), np.flatnonzero(y == 3)[:1]]
    found = sweep_head("nearest-centroid", X[kept], y[kept], n_jobs=1)
    assert found.head.classes_.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("changes", "message"), [
    ({"metric": "accurac"}, "Did you mean 'accuracy'"),
    ({"grid": {"c": [1.0]}}, "Unknown setting of head 'ridge' 'c'"),
    ({"grid": {"alpha": []}}, "not usable"),
    ({"grid": {"alpha": "loo"}}, "not usable"),
    ({"grid": {"alpha": [1.0, -1.0]}}, r"With the settings \{'alpha': -1.0\}: alpha is -1.0"),
    ({"folds": 1}, "two folds"),
], ids=str)
def test_what_cannot_be_swept_is_refused(rows, changes, message):
    with pytest.raises(HeadError, match=message):
        sweep_head("ridge", *rows, n_jobs=1, **changes)


def test_one_row_a_class_cannot_be_cross_validated():
    with pytest.raises(HeadError, match="largest class has 1 rows"):
        sweep_head("ridge", np.eye(3), np.arange(3))
