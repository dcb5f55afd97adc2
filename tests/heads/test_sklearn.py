"""Every head is a scikit-learn classifier: it passes scikit-learn's own checks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.heads import HEADS, make_head

SMALL = {
    "linear": {"epochs": 25, "lr": 0.05},
    "mlp": {"epochs": 20, "hidden": 16, "batch_size": 16, "lr": 0.01},
    "random-forest": {"n_estimators": 5},
    "hist-gradient-boosting": {"max_iter": 5},
}


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Estimator .* does not inherit")  # see pipeline/heads/estimator.py
    checked = parametrize_with_checks([make_head(name, **SMALL.get(name, {})) for name in HEADS])


@checked
def test_head_passes_the_estimator_check(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    return (rng.normal(size=(3, 5))[y] * 2 + rng.normal(size=(90, 5))).astype(np.float32), np.array(["a", "b", "c"])[y]


@pytest.mark.parametrize("name", HEADS)
def test_heads_serve_wherever_scikit_learn_takes_a_classifier(name, blobs):
    X, y = blobs
    head = make_head(name, **SMALL.get(name, {}))
    assert is_classifier(head)
    assert clone(head).get_params() == head.get_params()
    assert cross_val_score(make_pipeline(StandardScaler(), head), X, y, cv=3).mean() > 0.7
    assert cross_val_predict(head, X, y, cv=3, method="predict_proba").shape == (90, 3)
    assert head.fit(X, y).score(X, y) == np.mean(head.predict(X) == y)


def test_heads_serve_in_scikit_learns_searches_and_ensembles(blobs):
    X, y = blobs
    search = GridSearchCV(make_head("logistic"), {"C": [1e-3, 1.0]}, cv=3).fit(X, y)
    assert search.best_estimator_.get_params()["C"] == search.best_params_["C"]
    members = [("ridge", make_head("ridge")), ("lda", make_head("lda"))]
    for ensemble in (VotingClassifier(members, voting="soft"), StackingClassifier(members, make_head("logistic"), cv=3),
                     CalibratedClassifierCV(make_head("nearest-centroid"), cv=3),
                     OneVsRestClassifier(make_head("logistic"))):
        assert ensemble.fit(X, y).score(X, y) > 0.7
