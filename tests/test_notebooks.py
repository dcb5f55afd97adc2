"""What a notebook shows of runs and caches."""

from __future__ import annotations

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    for name, photo in zip(("<b>", "flower"), load_sample_images().images, strict=True):
        for number in range(8):
            place = folder / "data" / ("val" if number < 2 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[:48, 48 * number : 48 * number + 48]).save(place / f"{number}.png")
    made = pipeline.extract(str(folder / "data"), "pixels", cache_dir=folder / "cache")
    run = pipeline.train_head("nearest-centroid", features=made.path, runs_dir=folder / "runs", name="run")
    return made, run


def test_a_run_shows_the_figures_of_each_split(done):
    _, run = done
    shown, scores = run._repr_html_(), run.metrics["splits"]["val"]
    assert "run run" in shown
    assert f"<td>val</td><td>4</td><td>{scores['accuracy']:.4f}</td>" in shown
    assert "{:.4f} to {:.4f}".format(*scores["accuracy_ci95"]) in shown


def test_a_cache_shows_the_images_of_each_class_and_split(done):
    made, _ = done
    with made.open() as cache:
        shown = cache._repr_html_()
    assert "<tr><th>class</th><th>train</th><th>val</th></tr>" in shown
    assert "<tr><td>&lt;b&gt;</td><td>6</td><td>2</td></tr>" in shown


def test_a_closed_cache_says_that_it_is(done):
    made, _ = done
    with made.open() as cache:
        assert not cache.closed
    assert cache.closed
    assert "closed" in cache._repr_html_()
    assert repr(cache) == f"<FeatureCache {made.path}: closed>"
