"""Features of several layers: scaled apart, and chosen so that more of them never cost accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import HeadError
from pipeline.heads import LinearHead, load_head, make_head, save_head
from pipeline.heads.groups import choose_groups

NAMES, WIDTHS = ["pooled", "early", "late"], [6, 4, 5]
GROUPS = [(6, 1.0), (4, 0.0), (5, 0.01)]


def rows(count: int = 600, informative: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, count)
    means = rng.normal(size=(3, 15)) * np.repeat([0.7, 0, 0.9 if informative else 0], WIDTHS)
    X = means[y] + rng.normal(size=(count, 15))
    return (X * np.repeat([1, 1, 100], WIDTHS)).astype(np.float32), y


def test_layers_that_help_are_chosen_and_the_others_are_not():
    X, y = rows(4000)
    groups, report = choose_groups(X, y, NAMES, WIDTHS, "pooled")
    assert report["chosen"] == ["pooled", "late"] and report["left_out"] == ["early"]
    assert report["together"] < report["alone"]
    assert [count for count, _ in groups] == WIDTHS and groups[1][1] == 0
    assert groups[2][1] == pytest.approx(0.01, rel=0.3)  # a column varies as one of the first does
    X, y = rows(informative=False)
    groups, report = choose_groups(X, y, NAMES, WIDTHS, "pooled")
    assert report["chosen"] == ["pooled"] and "pooled alone" in report["sentence"]
    assert groups == [(6, 1.0), (4, 0.0), (5, 0.0)]


def test_too_few_images_to_choose_on_take_the_first_layer_and_say_so():
    X, _ = rows(3)
    _, report = choose_groups(X, np.array([0, 1, 2]), NAMES, WIDTHS, "pooled")
    assert report["chosen"] == ["pooled"] and "too few images" in report["sentence"] and "alone" not in report


@pytest.mark.parametrize("scaling", ["none", "standardize", "pca-whiten"])
def test_groups_are_the_head_on_the_columns_multiplied_beforehand(scaling):
    X, y = rows()
    by_hand = X * np.repeat([1, 0, 0.01], WIDTHS).astype(np.float32)
    head = make_head("logistic", scaling=scaling, C=0.1, groups=GROUPS).fit(X, y)
    plain = make_head("logistic", scaling=scaling, C=0.1).fit(by_hand, y)
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(by_hand), atol=1e-4)
    np.testing.assert_allclose(head.coef_[:, 6:10], 0)
    # and the coefficients are for the columns as they are
    scores = X @ head.coef_.T + head.intercept_
    np.testing.assert_allclose(scores, head.scores(X), rtol=1e-3, atol=1e-3)


def test_a_sweep_along_one_path_and_over_folds_gives_the_heads_that_single_fits_give(monkeypatch):
    monkeypatch.setattr("pipeline.heads.logistic.SMALL", 1000)
    X, y = rows(4000)
    groups = GROUPS
    head = make_head("logistic", groups=groups)
    settings = [{"C": 0.01}, {"C": 1.0}]
    single = [make_head("logistic", groups=groups, **one).fit(X, y).coef_ for one in settings]
    for found, expected in zip(head.fit_path(X, y, settings), single, strict=True):
        np.testing.assert_allclose(found.coef_, expected, atol=2e-3)
    folds = [(np.arange(3000), np.arange(3000, 4000)), (np.arange(1000, 4000), np.arange(1000))]
    assert head.fits_folds_together(X, y, folds, settings)
    by_hand = X * np.repeat([1, 0, 0.01], WIDTHS).astype(np.float32)
    expected = make_head("logistic").fit_folds(by_hand, y, folds, settings, [[0, 1], [0, 1]])
    for one, (fold, position, found) in zip(expected, head.fit_folds(X, y, folds, settings, [[0, 1]] * 2), strict=True):
        assert one[:2] == (fold, position)
        np.testing.assert_allclose(found.predict_proba(X), one[2].predict_proba(by_hand), atol=1e-4)


@pytest.mark.parametrize("make", [lambda: make_head("logistic", groups=GROUPS),
                                  lambda: LinearHead(groups=GROUPS, epochs=1)])
def test_a_saved_head_answers_as_before(make, tmp_path):
    X, y = rows()
    head = make().fit(X, y)
    save_head(head, tmp_path)
    again, _ = load_head(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))


def test_what_cannot_be_is_refused():
    X, y = rows()
    with pytest.raises(HeadError, match="14 columns, and the features 15"):
        make_head("logistic", groups=[(10, 1.0), (4, 1.0)]).fit(X, y)
    with pytest.raises(HeadError, match="rows as a whole"):
        make_head("logistic", groups=GROUPS, scaling="l2").fit(X, y)
