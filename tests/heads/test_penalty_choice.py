"""`logistic` without C chooses its penalty on the training rows alone, and says how."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from pipeline.evaluation.metrics import evaluate, log_loss
from pipeline.heads import make_head
from pipeline.heads.folds import fold_numbers
from pipeline.heads.penalty_choice import choose_penalty
from pipeline.heads.rows import StreamedRows
from pipeline.heads.solver import CROSS_ENTROPY


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X + np.random.default_rng(0).normal(scale=4, size=X.shape), y


def test_chosen_penalty_is_as_good_as_the_best_that_scikit_learn_finds_by_cross_validation(digits):
    X, y = digits
    train, test = np.arange(400), np.arange(400, 1797)
    Cs = np.logspace(-6, 1, 15)
    losses = [log_loss(y[train], cross_val_predict(LogisticRegression(C=C, max_iter=5000), X[train], y[train], cv=5,
                                                   method="predict_proba")) for C in Cs]
    best = LogisticRegression(C=Cs[int(np.argmin(losses))], max_iter=5000).fit(X[train], y[train])
    head = make_head("logistic").fit(X[train], y[train])
    ours, theirs = (evaluate(y[test], one.predict_proba(X[test])) for one in (head, best))
    assert ours["log_loss"] <= 1.1 * theirs["log_loss"]
    assert ours["accuracy"] >= theirs["accuracy"] - 0.01


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_choice_does_not_depend_on_the_units_of_the_features(digits, scale):
    X, y = digits
    head = make_head("logistic").fit(X[:300] * scale, y[:300])
    assert head.C_ * scale**2 == pytest.approx(make_head("logistic").fit(X[:300], y[:300]).C_, rel=1e-3)


def test_out_of_fold_log_losses_are_those_of_heads_fitted_by_hand(digits):
    X, y = digits[0][:200].astype(np.float32), digits[1][:200]
    found, _ = choose_penalty(X, y, np.ones(200), CROSS_ENTROPY, seed=3)
    numbers = fold_numbers(y, 5, 3)
    for at in (2, 6, 9):
        lost = np.empty(200)
        for fold in range(5):
            train, test = numbers != fold, numbers == fold
            head = make_head("logistic", C=found["penalties"][at]).fit(X[train], y[train])
            lost[test] = -np.log(head.predict_proba(X[test])[np.arange(test.sum()), y[test]])
        assert found["log_loss"][at] == pytest.approx(lost.mean(), rel=0.03)
    assert (found["n"], found["folds"]) == (200, 5)


def test_the_strongest_penalty_that_is_no_worse_than_chance_is_taken(digits):
    X, y = digits
    choice = make_head("logistic").fit(X[:200], y[:200]).choice_
    chosen = choice["penalties"].index(choice["settings"]["C"])
    assert chosen <= int(np.argmin(choice["log_loss"]))
    assert choice["log_loss"][chosen] < 1.2 * min(choice["log_loss"])


def test_hard_and_easy_rows_get_different_penalties(digits):
    X, y = digits
    clean = load_digits(return_X_y=True)[0]
    hard, easy = make_head("logistic").fit(X[:400], y[:400]), make_head("logistic").fit(clean[:400], y[:400])
    assert easy.C_ > 3 * hard.C_


def test_a_given_penalty_is_not_chosen_and_says_so(digits):
    X, y = digits
    head = make_head("logistic", C=0.01).fit(X[:200], y[:200])
    assert head.C_ == 0.01
    assert not hasattr(head, "choice_") and not hasattr(head, "selection_")
    assert make_head("logistic").fit(X[:200], y[:200]).selection_ == "cv"


def test_one_row_a_class_trains_without_a_choice():
    X, y = np.eye(4, 6), np.arange(4)
    head = make_head("logistic").fit(X, y)
    assert head.score(X, y) == 1
    assert not hasattr(head, "choice_")


def test_class_of_one_row_is_never_left_out(digits):
    X, y = digits
    rows = np.r_[np.flatnonzero(y[:300] < 3), np.flatnonzero(y[:300] == 3)[:1]]
    assert (fold_numbers(np.unique(y[rows], return_inverse=True)[1], 5)[-1:] == -1).all()
    assert make_head("logistic").fit(X[rows], y[rows]).choice_["n"] == len(rows) - 1


def test_many_rows_are_chosen_on_a_sample_with_every_class(digits, monkeypatch):
    X, y = digits
    monkeypatch.setattr("pipeline.heads.penalty_choice.SAMPLE_VALUES", 64 * 500)
    head = make_head("logistic").fit(X, y)
    assert head.choice_["n"] == pytest.approx(450, abs=50)
    whole = StreamedRows(lambda positions: X[positions].astype(np.float32), X.shape)
    assert pytest.approx(head.C_, rel=1e-3) == make_head("logistic").fit(whole, y).C_


def test_views_of_an_image_are_left_out_together(digits):
    X, y = digits
    views = np.stack([X[:200], X[:200]], axis=1)  # a copy in training would make any penalty look best
    twice, once = make_head("logistic").fit(views, y[:200]), make_head("logistic").fit(X[:200], y[:200])
    assert pytest.approx(once.C_, rel=1e-3) == twice.C_
    assert twice.choice_["n"] == 200


def test_nothing_that_can_be_solved_is_trained_without_a_choice(digits, monkeypatch):
    X, y = digits
    monkeypatch.setattr("pipeline.heads.penalty_path.MOST", defaultdict(int))
    head = make_head("logistic").fit(X[:100], y[:100])
    assert head.C_ > 0 and not hasattr(head, "choice_")
