"""Heads against scikit-learn's models, against brute force, and against answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.svm import SVC, LinearSVC

from pipeline.core.errors import HeadError
from pipeline.heads import make_head, solver
from pipeline.heads.ridge import RidgeProblem, indicators
from pipeline.heads.scaling import fit_scaler
from pipeline.heads.scores import softmax
from pipeline.heads.solver import LinearProblem


def digits(classes=10, rows=500):
    X, y = load_digits(return_X_y=True)
    kept = np.flatnonzero(y < classes)[:rows]
    return X[kept], y[kept]


def objective(W, b, Z, y, C, weights=1.0):
    """Return scikit-learn's objective of softmax regression, with two classes of binary logistic regression."""
    scores = Z @ W.T + b
    if len(W) == 2:
        W = W[1:] - W[:1]
    loss = -np.log(softmax(scores))[np.arange(len(y)), y]
    return C * float((weights * loss).sum()) + float(np.square(W).sum()) / 2


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("rows", [40, 500])  # fewer and more rows than features
@pytest.mark.parametrize("C", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_reaches_scikit_learns_optimum(classes, rows, C, dtype, class_weight):
    X, y = digits(classes, rows)
    Z = fit_scaler("standardize", X)(X)
    head = make_head("logistic", C=C, scaling="none", class_weight=class_weight).fit(Z.astype(dtype), y)
    reference = LogisticRegression(C=C, tol=1e-8, max_iter=100_000, class_weight=class_weight).fit(Z, y)
    W, b = reference.coef_, reference.intercept_
    if classes == 2:
        W, b = np.vstack([-W, W]) / 2, np.array([-b[0], b[0]]) / 2
    weights = np.ones(len(y)) if class_weight is None else len(y) / classes / np.bincount(y)[y]
    best = objective(W, b, Z, y, C, weights)
    assert objective(head.coef_, head.intercept_, Z, y, C, weights) <= best * (1 + 1e-5)


@pytest.mark.parametrize("scaling", ["none", "standardize", "pca-whiten"])
def test_coefficients_are_for_raw_features_whatever_the_scaling(scaling):
    X, y = digits()
    head = make_head("logistic", scaling=scaling).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), softmax(X @ head.coef_.T + head.intercept_), atol=1e-12)
    Z = fit_scaler(scaling, X)(X)
    inner = make_head("logistic", scaling="none").fit(Z, y)
    np.testing.assert_allclose(inner.predict_proba(Z), head.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_linear_svm_is_at_least_as_good_as_liblinears_optimum(classes):
    X, y = digits(classes)
    Z, C = fit_scaler("standardize", X)(X), 0.01
    head = make_head("linear-svm", C=C, scaling="none").fit(Z, y)
    for k in range(classes):
        sign = np.where(y == k, 1, -1)
        reference = LinearSVC(C=C, tol=1e-10, max_iter=100_000, dual=False, intercept_scaling=1000).fit(Z, y == k)

        def cost(w, b, sign=sign):
            return w @ w / 2 + C * np.square(np.maximum(1 - sign * (Z @ w + b), 0)).sum()

        best = cost(reference.coef_[0], reference.intercept_[0])
        assert cost(head.coef_[k], head.intercept_[k]) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("rows", [40, 500])
@pytest.mark.parametrize("alpha", [0.1, 10.0, 1e4])
def test_ridge_is_scikit_learns(rows, alpha):
    X, y = digits(rows=rows)
    head = make_head("ridge", alpha=alpha, scaling="none", class_weight="balanced").fit(X, y)
    weights = len(y) / len(head.classes_) / np.bincount(y)[y]
    reference = Ridge(alpha).fit(X, indicators(y, len(head.classes_)), weights)
    np.testing.assert_allclose(head.coef_, reference.coef_, atol=1e-8)
    np.testing.assert_allclose(head.intercept_, reference.intercept_, atol=1e-8)


def test_ridge_with_a_constant_column_is_the_few_shot_probe():
    # the probe penalises the constant's coefficient like any other and has no free intercept
    X, y = digits(rows=60)
    Z = np.column_stack([fit_scaler("standardize", X)(X), np.ones(60)])
    T = indicators(y, 10)
    expected = np.linalg.solve(Z.T @ Z + 32 * np.eye(65), Z.T @ T).T
    np.testing.assert_allclose(Ridge(32, fit_intercept=False).fit(Z, T).coef_, expected, atol=1e-9)
    ours, level = RidgeProblem(Z[:, :-1], y, np.ones(60), 10).solve(32)
    # centred features make the constant independent of them: only its own shrinkage, 60 / (60 + 32), differs
    np.testing.assert_allclose(ours, expected[:, :-1], atol=1e-9)
    np.testing.assert_allclose(level * 60 / 92, expected[:, -1], atol=1e-9)


@pytest.mark.parametrize("rows", [30, 120])
def test_ridge_leaves_each_row_out_exactly(rows):
    X, y = digits(3, rows)
    T, weights = indicators(y, 3), np.linspace(0.5, 2, rows)
    problem, alphas = RidgeProblem(X, y, weights, 3), np.array([0.1, 5.0])
    left_out = np.concatenate(list(problem.left_out(alphas, problem.levers(alphas))))[:, 1]
    for i in range(0, rows, 7):
        others = np.arange(rows) != i
        expected = Ridge(5.0).fit(X[others], T[others], weights[others]).predict(X[i : i + 1])[0]
        np.testing.assert_allclose(left_out[i], expected, atol=1e-7)


def test_ridge_takes_the_penalty_with_the_smallest_left_out_error():
    X, y = digits(rows=200)
    head = make_head("ridge").fit(X, y)
    assert head.alpha_ == head.alphas_[head.loo_errors_.argmin()]
    assert 0 < head.loo_errors_.argmin() < len(head.alphas_) - 1
    assert head.loo_accuracies_.max() > 0.9


@pytest.mark.parametrize("shrinkage", [0.1, 0.5, 1.0])
def test_lda_is_scikit_learns(shrinkage):
    X, y = digits()
    head = make_head("lda", shrinkage=shrinkage, scaling="none").fit(X, y)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-8)


def test_ldas_own_shrinkage_is_ledoit_and_wolfs():
    X, y = digits()
    head = make_head("lda", shrinkage="auto", scaling="none").fit(X, y)
    centred = X - np.stack([X[y == k].mean(axis=0) for k in range(10)])[y]
    assert head.shrinkage_ == pytest.approx(ledoit_wolf_shrinkage(centred, assume_centered=True))


def test_gaussian_nb_is_scikit_learns():
    X, y = digits()
    X = X + np.random.default_rng(0).normal(size=X.shape)
    reference = GaussianNB().fit(X, y)
    head = make_head("gaussian-nb", scaling="none", smoothing=1e-9).fit(X, y)
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-7)


def test_nearest_centroid_is_scikit_learns():
    X, y = digits()
    head = make_head("nearest-centroid", scaling="none").fit(X, y)
    np.testing.assert_array_equal(head.predict(X), NearestCentroid().fit(X, y).predict(X))


def test_nearest_centroids_left_out_scores_are_those_of_a_second_training(monkeypatch):
    from pipeline.heads import gaussian

    X, y = digits(3, 40)
    seen = []
    monkeypatch.setattr(gaussian, "fit_temperature", lambda scores, codes: seen.append(scores) or 1.0)
    make_head("nearest-centroid", scaling="none").fit(X, y)
    for i in (0, 5, 11):
        others = np.arange(len(y)) != i
        means = np.stack([X[others & (y == k)].mean(axis=0) for k in range(3)])
        expected = -np.square(X[i] - means).sum(axis=1) / 2
        np.testing.assert_allclose(np.diff(seen[0][i]), np.diff(expected))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_plain_knn_is_scikit_learns(metric):
    X, y = digits()
    X = X + np.random.default_rng(0).normal(size=X.shape)
    head = make_head("knn", k=7, metric=metric, votes="uniform", scaling="none").fit(X[:300], y[:300])
    reference = KNeighborsClassifier(7, metric=metric).fit(X[:300], y[:300])
    np.testing.assert_allclose(head.predict_proba(X[300:]), reference.predict_proba(X[300:]), atol=1e-12)


def test_knn_on_the_corners_of_a_square():
    corners, y = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]]), np.array([0, 1, 2, 3])
    query = np.array([[0.1, 0.2]])  # squared distances 0.05, 0.85, 0.65, 1.45: ranks 0, 2, 1, 3
    head = make_head("knn", k=4, metric="euclidean", votes="exp", T=0.5, scaling="none").fit(corners, y)
    votes = np.exp(-np.array([0.05, 0.85, 0.65, 1.45]))  # half a squared distance over T = 0.5
    np.testing.assert_allclose(head.predict_proba(query)[0], votes / votes.sum())
    two = clone(head).set_params(k=2).fit(corners, y).predict_proba(query)[0]
    np.testing.assert_allclose(two, [votes[0], 0, votes[2], 0] / (votes[0] + votes[2]), atol=1e-12)


def test_knns_cosine_votes_by_hand():
    # DINOv2: exp(similarity / 0.07); the query at 0, rows at 0, 60 and 90 degrees
    rows = np.array([[2.0, 0], [0.5, np.sqrt(0.75)], [0, 3]])
    head = make_head("knn", k=3, scaling="none").fit(rows, [0, 1, 1])
    votes = np.exp(np.array([1, 0.5, 0]) / 0.07)
    expected = [votes[0], votes[1] + votes[2]] / votes.sum()
    np.testing.assert_allclose(head.predict_proba([[5.0, 0]])[0], expected)


def test_of_equally_near_rows_the_first_vote():
    rng = np.random.default_rng(0)
    rows, y = rng.integers(0, 3, (400, 2)).astype(np.float32), rng.integers(0, 4, 400)
    head = make_head("knn", k=7, metric="euclidean", votes="uniform", scaling="none").fit(rows, y)
    places = np.argsort(np.square(rows[:, None] - rows).sum(axis=2), axis=1, kind="stable")[:, :7]
    votes = np.stack([np.bincount(y[own], minlength=4) for own in places]) / 7
    np.testing.assert_allclose(head.predict_proba(rows), votes, atol=1e-12)


def test_random_forest_is_scikit_learns():
    X, y = digits()
    head = make_head("random-forest", n_estimators=20).fit(X[:300], y[:300])
    reference = RandomForestClassifier(20, random_state=0).fit(X[:300], y[:300])
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_hist_gradient_boosting_is_scikit_learns(classes):
    X, y = digits(classes)
    settings = {"max_iter": 10, "max_leaf_nodes": 7, "max_features": 1.0, "min_samples_leaf": 5}
    head = make_head("hist-gradient-boosting", l2_regularization=1.0, **settings).fit(X[:200], y[:200])
    reference = HistGradientBoostingClassifier(
        l2_regularization=1.0, early_stopping=False, random_state=0, **settings
    ).fit(X[:200], y[:200])
    np.testing.assert_allclose(head.predict_proba(X), reference.predict_proba(X), atol=1e-10)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_svm_rbf_is_scikit_learns(classes):
    X, y = digits(classes)
    Z = fit_scaler("standardize", X)(X)
    head = make_head("svm-rbf", C=3.0, scaling="none").fit(Z[::2], y[::2])
    reference = SVC(C=3.0, break_ties=True).fit(Z[::2], y[::2])
    expected, scores = reference.decision_function(Z), head.scores(Z)
    # the kernel is made by matrix products, and both solvers stop near the optimum: of several classes, where one of a
    # pair leads by less than scikit-learn's own distance from it, that one vote may go to either
    pairs, exact = (SVC(C=3.0, decision_function_shape="ovo", tol=tol).fit(Z[::2], y[::2]).decision_function(Z)
                    .reshape(len(Z), -1) for tol in (1e-3, 1e-6))
    tied = (abs(pairs) <= abs(pairs - exact).max()).sum(axis=1)
    assert (tied > 0).mean() < 0.05
    off = abs((scores[:, 1] if classes == 2 else scores) - expected)
    assert (off.T - (tied if classes > 2 else 0) <= 1e-3).all()
    np.testing.assert_array_equal(head.predict(Z), reference.predict(Z))


def test_linear_by_lbfgs_reaches_the_optimum_of_logistic():
    X, y = digits(4, 300)
    C = 0.01
    settings = {"optimizer": "lbfgs", "weight_decay": 1 / (C * len(y)), "epochs": 20, "schedule": "constant"}
    iterated = make_head("linear", **settings).fit(X, y)
    solved = make_head("logistic", C=C, scaling="standardize").fit(X, y)
    np.testing.assert_allclose(iterated.predict_proba(X), solved.predict_proba(X), atol=1e-3)


def test_linears_first_step_by_hand():
    X, y = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([0, 1])
    head = make_head("linear", scaling="none", epochs=1, lr=0.1).fit(X, y)
    # from zero weights every probability is 1/2, so the step is 0.1 times the mean of (target - 1/2) x
    step = 0.1 * np.array([[0.5, -0.5], [-0.5, 0.5]]) @ X / 2
    np.testing.assert_allclose(head.coef_, step, atol=1e-7)
    np.testing.assert_allclose(head.intercept_, 0, atol=1e-7)
    assert head.history_ == [{"epoch": 1, "lr": 0.1, "train_loss": pytest.approx(np.log(2)),
                              "train_accuracy": pytest.approx(0.5)}]


def test_linear_lowers_its_rate_as_the_tutorial_does():
    X, y = digits(2, 20)
    rates = [line["lr"] for line in make_head("linear", epochs=15, schedule="step").fit(X, y).history_]
    assert rates == pytest.approx([1e-3] * 7 + [1e-4] * 7 + [1e-5])


def test_linear_keeps_the_first_epoch_that_was_best_on_validation_rows():
    X, y = digits(5, 300)
    head = make_head("linear", epochs=6).fit(X[:150], y[:150], X[150:], y[150:])
    scores = [line["val_accuracy"] for line in head.history_]
    assert head.best_epoch_ == int(np.argmax(scores)) + 1
    assert (head.predict(X[150:]) == y[150:]).mean() == pytest.approx(max(scores))
    assert head.selection_ == "val"
    assert make_head("linear", epochs=1).fit(X, y).selection_ == "last"


def test_resampling_shows_every_class_equally_often():
    X = np.concatenate([np.random.default_rng(0).normal(size=(95, 3)), np.random.default_rng(1).normal(size=(5, 3))])
    y = np.repeat([0, 1], [95, 5])
    share = {resample: make_head("linear", resample=resample, lr=0.03).fit(X, y).predict_proba(X)[:, 1].mean()
             for resample in (False, True)}
    assert share[False] < 0.2 < 0.4 < share[True]


def test_label_smoothing_makes_linear_less_sure():
    X, y = digits(3, 200)
    sure, smooth = (make_head("linear", label_smoothing=s).fit(X, y).predict_proba(X).max(axis=1).mean()
                    for s in (0.0, 0.3))
    assert smooth < sure - 0.1


def test_learning_rate_that_is_too_high_is_said_to_be():
    X, y = digits(3, 100)
    with pytest.raises(HeadError, match="learning rate 1e\\+38 is too high"):
        make_head("linear", lr=1e38).fit(X, y)


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("linear", {"optimizer": "sgdd"}, "Did you mean 'sgd'"),
    ("linear", {"schedule": "stop"}, "Did you mean 'step'"),
    ("linear", {"epochs": 0}, "epochs is 0"),
    ("linear", {"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ("mlp", {"hidden": 0}, "hidden is 0"),
    ("logistic", {"C": 0}, "C is 0"),
    ("logistic", {"C": "best"}, "C is 'best'"),
    ("linear-svm", {"C": -1}, "C is -1"),
    ("ridge", {"alpha": -1.0}, "must be above 0"),
    ("ridge", {"alpha": "best"}, "alpha is 'best'"),
    ("lda", {"shrinkage": 2}, "shrinkage is 2"),
    ("svm-rbf", {"gamma": "auto"}, "gamma is 'auto'"),
    ("svm-rbf", {"gamma_factor": 0}, "gamma_factor is 0"),
    ("knn", {"k": 0}, "k is 0"),
    ("knn", {"metric": "cosin"}, "Did you mean 'cosine'"),
    ("knn", {"votes": "none"}, "Unknown votes"),
    ("logistic", {"class_weight": "balance"}, "class_weight is 'balance'"),
])
def test_settings_that_cannot_be_are_refused(name, settings, message):
    with pytest.raises(HeadError, match=message):
        make_head(name, **settings).fit(*digits(3, 60))


def test_many_classes_are_solved_in_single_precision_to_the_optimum_of_double(monkeypatch):
    """Each class makes a walk over the rows longer, and then precision costs what it is not worth."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(120), 4)
    X = (rng.normal(size=(120, 24))[y] + rng.normal(size=(480, 24))).astype(np.float32)
    monkeypatch.setattr(solver, "SMALL", X.size)
    single, double = LinearProblem(X, y, np.ones(480), 120), LinearProblem(X, y, np.ones(480), 100)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    found = make_head("logistic", C=1.0).fit(X, y)
    monkeypatch.setattr(solver, "SMALL", 10**9)
    exact = make_head("logistic", C=1.0).fit(X, y)
    assert found.converged_ and exact.converged_
    np.testing.assert_allclose(found.predict_proba(X), exact.predict_proba(X), atol=2e-3)
