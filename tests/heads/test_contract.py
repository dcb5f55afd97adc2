"""What every head in the table does, whatever its method; a new head is tested here without new test code."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import HeadError, UnknownNameError
from pipeline.heads import HEADS, load_head, make_head, probabilities, save_head
from pipeline.heads.scaling import SCALINGS

QUICK = {
    "linear": {"epochs": 5, "lr": 0.05},
    "mlp": {"epochs": 30, "hidden": 8, "batch_size": 16, "lr": 0.01},
    "random-forest": {"n_estimators": 10},
    "hist-gradient-boosting": {"max_iter": 10},
}
EVERY_HEAD = pytest.mark.parametrize("name", HEADS)


def quick(name, **settings):
    return make_head(name, **QUICK.get(name, {}), **settings)


def blobs(classes=3, each=20, features=8, seed=0):
    """Return rows around one well separated centre a class."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    centres = 4 * rng.normal(size=(classes, features))
    return (centres[y] + rng.normal(size=(len(y), features))).astype(np.float32), y


@EVERY_HEAD
def test_probabilities_sum_to_one_and_find_the_blobs(name):
    X, y = blobs()
    shares = quick(name).fit(X, y).predict_proba(X)
    assert shares.dtype == np.float64
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-12)
    assert (shares >= 0).all()
    assert (shares.argmax(axis=1) == y).mean() > 0.9


@EVERY_HEAD
@pytest.mark.parametrize("names", [["ant", "bee", "cat"], [7, -3, 40], [True, False, True]], ids=str)
def test_labels_come_back_as_they_were_given(name, names):
    X, y = blobs()
    labels = np.array(names)[y]
    found = quick(name).fit(X, labels).predict(X)
    assert found.dtype.kind == labels.dtype.kind
    assert set(found) <= set(labels)


@EVERY_HEAD
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("labels", [np.arange(3), np.array(["ant", "bee", "ü\n"]), np.array(["a", "b", "c"], object)],
                         ids=["ids", "names", "objects"])
def test_saved_head_predicts_exactly_the_same(name, scaling, labels, tmp_path):
    X, y = blobs()
    head = quick(name, scaling=scaling).fit(X, labels[y], X[::3], labels[y][::3])
    metadata = {"class_names": ["ants", "bees"], "spec_sha256": "0" * 64}
    files = save_head(head, tmp_path, metadata)
    again, found = load_head(tmp_path)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    assert found == metadata
    assert again.get_params() == head.get_params()
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert again.predict(X).dtype == head.predict(X).dtype


@EVERY_HEAD
def test_class_missing_from_training_keeps_its_column(name):
    X, y = blobs(classes=4)
    seen = y != 1
    shares = probabilities(quick(name).fit(X[seen], y[seen]), X, 6)
    assert shares.shape == (len(X), 6)
    assert (shares[:, [1, 4, 5]] == 0).all()
    assert (shares.argmax(axis=1) == y)[seen].mean() > 0.9


@EVERY_HEAD
def test_class_unseen_in_training_may_occur_in_validation(name):
    X, y = blobs(classes=4)
    seen = y != 1
    head = quick(name).fit(X[seen], y[seen], X, y)
    assert head.classes_.tolist() == [0, 2, 3]


@EVERY_HEAD
def test_one_sample_a_class_is_enough(name):
    X, y = blobs(classes=3, each=1)
    shares = quick(name).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


@EVERY_HEAD
@pytest.mark.parametrize("scaling", SCALINGS)
def test_constant_features_do_no_harm(name, scaling):
    X, y = blobs()
    X[:, 2], X[:, 5] = 1e4, 0
    shares = quick(name, scaling=scaling).fit(X, y).predict_proba(X)
    assert np.isfinite(shares).all()


@EVERY_HEAD
def test_duplicate_rows_do_no_harm(name):
    X, y = blobs()
    X, y = np.repeat(X[::10], 8, axis=0), np.repeat(y[::10], 8)
    assert (quick(name).fit(X, y).predict(X) == y).mean() > 0.9


@EVERY_HEAD
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(name, bad):
    X, y = blobs()
    head = quick(name).fit(X, y)
    X[3, 2] = bad
    with pytest.raises(HeadError, match=r"NaN|infinity"):
        quick(name).fit(X, y)
    with pytest.raises(HeadError, match=r"NaN|infinity"):
        head.predict_proba(X)


@EVERY_HEAD
def test_half_precision_features_give_the_same_as_single(name):
    X, y = blobs()
    half = X.astype(np.float16)
    a, b = quick(name).fit(half, y), quick(name).fit(half.astype(np.float32), y)
    np.testing.assert_array_equal(a.predict_proba(half), b.predict_proba(half.astype(np.float32)))


@EVERY_HEAD
@pytest.mark.parametrize("classes", [2, 3, 30, 1000])
def test_any_number_of_classes(name, classes):
    X, y = blobs(classes, each=2 if classes < 1000 else 1, features=16)
    few = {"hist-gradient-boosting": 2, "linear-svm": 20}  # to the end they take a minute
    settings = {"max_iter": few[name]} if name in few else {}
    head = make_head(name, **QUICK.get(name, {}) | settings).fit(X, y)
    assert head.predict_proba(X[:4]).shape == (4, classes)


@EVERY_HEAD
def test_same_seed_gives_the_same_head(name):
    X, y = blobs()
    first, second = (quick(name, seed=3).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@EVERY_HEAD
def test_more_features_than_rows(name):
    X, y = blobs(each=6, features=200)
    assert (quick(name).fit(X, y).predict(X) == y).mean() > 0.9


@EVERY_HEAD
def test_balanced_weights_or_a_clear_refusal(name):
    X, y = blobs()
    if "class_weight" in HEADS[name].settings:
        assert quick(name, class_weight="balanced").fit(X, y).predict_proba(X).shape == (len(X), 3)
    else:
        with pytest.raises(HeadError, match="has no class weights"):
            make_head(name, class_weight="balanced")


@EVERY_HEAD
def test_one_class_alone_is_refused(name):
    with pytest.raises(HeadError, match="two classes or more"):
        quick(name).fit(blobs()[0], np.zeros(60, int))


@EVERY_HEAD
def test_unknown_setting_and_scaling_name_the_known_ones(name):
    with pytest.raises(HeadError, match=f"setting of head '{name}' 'depth'.*scaling"):
        make_head(name, depth=3)
    with pytest.raises(HeadError, match=r"Unknown scaling 'standardise'\. Did you mean 'standardize'"):
        quick(name, scaling="standardise").fit(*blobs())


def test_unknown_head_is_answered_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="Did you mean 'logistic'"):
        make_head("logstic")


def test_probabilities_refuse_labels_that_are_no_class_ids():
    X, y = blobs()
    head = make_head("nearest-centroid").fit(X, y)
    with pytest.raises(HeadError, match="no class ids below 2"):
        probabilities(head, X, 2)
    with pytest.raises(HeadError, match="no class ids"):
        probabilities(make_head("nearest-centroid").fit(X, y.astype(str)), X, 3)


def test_probabilities_of_no_rows_is_an_empty_table():
    X, y = blobs()
    assert probabilities(make_head("nearest-centroid").fit(X, y), X[:0], 3).shape == (0, 3)
