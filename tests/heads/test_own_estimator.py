"""Anybody's scikit-learn estimator as a head: trained, tuned, scored and kept as ours are, and never pickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import pipeline
from pipeline.core.errors import HeadError, PipelineError, RunError
from pipeline.heads import HEADS, load_head

X, y = load_digits(n_class=4, return_X_y=True)
X = X.astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = set(HEADS)
    yield {"features": pipeline.cache_embeddings(X, y, source="digits", test_fraction=0.3).path}
    for name in set(HEADS) - own:
        del HEADS[name]


def rows(run) -> tuple[np.ndarray, np.ndarray]:
    with pipeline.FeatureCache.open(next(Path("cache").glob("*/*.h5"))) as cache:
        return cache.split("test")


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(max_iter=500), make_pipeline(StandardScaler(), SVC()), LinearSVC(),
     MLPClassifier((16,), max_iter=60), CalibratedClassifierCV(LinearSVC(), cv=3)],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_it_is_scored_as_scikit_learn_scores_it_and_loads_the_same(cache, estimator):
    run = pipeline.train_head(estimator, seed=3, **cache)
    held_out, labels = rows(run)
    with pipeline.FeatureCache.open(cache["features"]) as features:
        train, known = features.split("train")
    seeds = {name: 3 for name in estimator.get_params() if name.endswith("random_state")}
    accuracy = estimator.set_params(**seeds).fit(train, known).score(held_out, labels)
    assert run.metrics["splits"]["test"]["accuracy"] == pytest.approx(accuracy, abs=1e-9) and accuracy > 0.9
    head, _ = load_head(run.path)
    assert (head.predict(held_out) == labels).mean() == pytest.approx(accuracy)
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(head.predict_proba(held_out), estimator.predict_proba(held_out), atol=1e-6)
    else:  # a temperature makes probabilities of a decision function, honest ones
        assert run.metrics["splits"]["test"]["ece"] < 0.08
    assert run.metrics["trainable_parameters"] > 0
    assert not [file for file in run.path.iterdir() if file.suffix in (".pkl", ".joblib", ".pickle")]


def test_it_is_tuned_by_its_own_names_and_other_settings_are_another_run(cache):
    made = make_pipeline(StandardScaler(), SVC())
    run = pipeline.train_head(made, sweep=pipeline.Sweep({"svc__C": [1e-4, 1.0]}), **cache)
    assert run.metrics["choice"]["settings"] == {"svc__C": 1.0} and run.metrics["selection"] == "cv"
    plain = pipeline.train_head(make_pipeline(StandardScaler(), SVC()), **cache)
    other = pipeline.train_head(make_pipeline(StandardScaler(), SVC(C=3)), **cache)
    assert len({run.name, plain.name, other.name}) == 3
    assert pipeline.train_head(make_pipeline(StandardScaler(), SVC(C=3)), **cache).name == other.name
    with pytest.raises(PipelineError, match=r"Unknown setting of StandardScaler-SVC 'svc__c'\. Did you mean 'svc__C'"):
        pipeline.train_head(made, svc__c=1, **cache)


def test_a_class_of_a_single_image_is_no_obstacle(cache):
    few = np.concatenate([np.flatnonzero(y < 2)[:40], np.flatnonzero(y == 2)[:1]])
    features = pipeline.cache_embeddings(X[few], y[few], ["train"] * 40 + ["train"], dataset_name="few").path
    run = pipeline.train_head(LinearSVC(), features=features)
    assert run.metrics["splits"]["train"]["accuracy"] == 1


def test_several_heads_of_both_kinds_are_trained_side_by_side(cache):
    runs = pipeline.train_heads([LogisticRegression(max_iter=500), "ridge"], **cache)
    assert {run.metrics["head"] for run in runs} == {"LogisticRegression", "ridge"}


class OfTheUser(SVC):
    pass


@pytest.mark.parametrize(
    ("head", "message"),
    [(StandardScaler(), "is no classifier"), (3, "or a scikit-learn classifier, not int"),
     (OfTheUser(), "cannot be saved: it holds .*OfTheUser"),
     (ExtraTreesClassifier(3), "cannot be saved: it holds .*Tree.* The heads random-forest")],
    ids=["scaler", "number", "own class", "trees"],
)  # fmt: skip
def test_what_is_no_classifier_or_cannot_be_kept_is_refused_with_the_reason(cache, head, message):
    with pytest.raises(HeadError, match=message):
        pipeline.train_head(head, **cache)
    assert not list(Path().glob("runs/*/metrics.json"))


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_forged_estimator_runs_nothing(cache):
    run = pipeline.train_head(LogisticRegression(max_iter=500), **cache)
    file, description = run.path / "head.skops", json.loads((run.path / "head.json").read_text())
    sound = file.read_bytes()

    def load_with(content: bytes) -> None:
        import hashlib

        from pipeline.heads.saving import _digest

        file.write_bytes(content)
        fresh = {**description, "estimator_sha256": hashlib.sha256(content).hexdigest()}
        del fresh["sha256"]
        (run.path / "head.json").write_text(json.dumps({**fresh, "sha256": _digest(fresh)}))
        with pytest.raises(RunError):
            load_head(run.path)

    load_with(pickle.dumps(Trap()))
    load_with(sound.replace(b"LogisticRegression", b"LogisticRegressioX"))
    with zipfile.ZipFile(run.path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
    load_with((run.path / "packed.zip").read_bytes())
    file.write_bytes(sound[:-1])
    with pytest.raises(RunError):
        load_head(run.path)
