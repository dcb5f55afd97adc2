"""Learning curves: fair subsets, a law that is recovered where it is known, and an honest interval."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.core.errors import CacheError, PipelineError
from pipeline.stage_two.learning_curve import (
    Point,
    _fit_law,
    _subsets,
    _usual_sizes,
    fewer_than_asked,
    forecast,
    learning_curve,
)


class Rows(SimpleNamespace):
    """Features of two Gaussian classes in the shape that a cache gives them."""

    path = "rows.h5"

    def split(self, name: str, *, view: int = 0):
        return self.splits.get(name, (np.empty((0, 5), np.float32), np.empty(0, np.int64)))


def gaussians(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(2, size=n)
    return (rng.normal(size=(n, 5)) + y[:, None]).astype(np.float32), y


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(0)
    return Rows(splits={"train": gaussians(200, rng), "val": gaussians(300, rng)})


@pytest.mark.parametrize(("error", "rate", "floor"), [(1.0, 0.5, 0.05), (0.8, 1.0, 0.0), (2.0, 0.25, 0.1)])
def test_a_known_law_is_recovered(error, rate, floor):
    sizes = np.array([10, 20, 40, 80, 160, 320], float)
    assert _fit_law(sizes, floor + error * sizes**-rate) == pytest.approx((error, rate, floor), abs=0.01)


def test_rising_errors_are_taken_for_a_floor_and_not_for_a_law():
    error, _, floor = _fit_law(np.array([10, 20, 40.0]), np.array([0.1, 0.2, 0.3]))
    assert error == 0 and floor == pytest.approx(0.2)


def test_subsets_are_stratified_nested_and_exact():
    y = np.repeat([0, 1, 2], [100, 50, 5])
    sizes = [(None, 10), (None, 40), (None, 155)]
    for small, middle, everything in zip(*[part[1] for part in _subsets(y, sizes, 1, 0)], strict=True):
        assert [len(small), len(middle), len(everything)] == [10, 40, 155]
        assert set(small) < set(middle) < set(everything)
        assert set(y[small]) == {0, 1, 2}
        assert np.abs(np.bincount(y[middle]) - 40 * np.array([100, 50, 5]) / 155).max() <= 1.5


def test_more_than_there_are_is_one_point_under_its_true_number():
    y = np.repeat([0, 1], [30, 20])
    found = _subsets(y, [(5, None), (30, None), (500, None)], 2, 0)
    assert [(shots, len(subsets), len(subsets[0])) for shots, subsets in found] == [(5, 2, 10), (30, 1, 50)]
    assert [len(subsets[0]) for _, subsets in _subsets(y, [(None, 50), (None, 60), (None, 1000)], 2, 0)] == [50]
    assert "no class has more than 30" in fewer_than_asked(y, None, [5, 500])[0]
    assert "train has 50" in fewer_than_asked(y, [10, 60], None)[0]
    assert fewer_than_asked(y, [50], None) == fewer_than_asked(y, None, [30]) == fewer_than_asked(y, None, None) == []


def test_shots_take_so_many_of_each_class_and_all_of_a_smaller_one():
    y = np.repeat([0, 1], [30, 3])
    (one, ten) = [part[1] for part in _subsets(y, [(1, None), (10, None)], 3, 0)]
    assert all(np.bincount(y[rows]).tolist() == [1, 1] for rows in one)
    assert all(np.bincount(y[rows]).tolist() == [10, 3] for rows in ten)
    assert len({tuple(rows) for rows in ten}) == 3, "repeats draw anew"


def test_usual_sizes_have_two_images_a_class_at_least_and_end_with_all():
    assert _usual_sizes(np.repeat([0, 1], 50)) == [5, 10, 20, 40, 70, 100]
    assert _usual_sizes(np.repeat(np.arange(10), 3)) == [21, 30]


def test_more_images_do_better_and_the_forecast_says_how_much(rows):
    points, split = learning_curve(rows, ["logistic"], sizes=[6, 20, 60, 200], repeats=4)
    assert split == "val"
    means = [point.accuracies.mean() for point in points]
    assert means[0] < means[-1] and [point.n for point in points] == [6, 20, 60, 200]
    assert [len(point.correct) for point in points] == [4, 4, 4, 1], "all images are one subset"
    found = forecast(points, "logistic")
    assert found.low < found.twice < found.high
    rng = np.random.default_rng(1)
    from pipeline.heads import make_head

    X, y = gaussians(400, rng)
    truth = make_head("logistic").fit(X, y).score(*gaussians(20_000, rng))
    assert found.low - 0.02 <= truth <= found.high + 0.02


def test_the_same_seed_gives_the_same_curve(rows):
    first, again = (learning_curve(rows, ["knn"], shots=[1, 5], repeats=2, seed=3)[0] for _ in range(2))
    assert all(np.array_equal(one.correct, other.correct) for one, other in zip(first, again, strict=True))


def test_two_sizes_make_no_law():
    points = [Point("knn", None, n, np.ones((2, 10), bool)) for n in (5, 10)]
    assert forecast(points, "knn") is None


def test_what_cannot_be_drawn_is_said(rows):
    with pytest.raises(PipelineError, match="1 or more"):
        learning_curve(rows, ["knn"], shots=[0])
    with pytest.raises(CacheError, match="no labelled test or val"):
        learning_curve(Rows(splits={"train": rows.splits["train"]}), ["knn"])
