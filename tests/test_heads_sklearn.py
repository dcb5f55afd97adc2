"""Every head is a scikit-learn classifier: it passes scikit-learn's own checks."""

from __future__ import annotations

from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.heads import HEADS, make_head

SMALL = {
    "linear": {"epochs": 25, "lr": 0.05},
    "mlp": {"epochs": 20, "hidden": 16, "batch_size": 16, "lr": 0.01},
    "random-forest": {"n_estimators": 5},
    "hist-gradient-boosting": {"max_iter": 5},
}


@parametrize_with_checks([make_head(name, **SMALL.get(name, {})) for name in HEADS])
def test_head_passes_the_estimator_check(estimator, check):
    check(estimator)
