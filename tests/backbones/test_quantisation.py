"""Precision int8: a network made once from photographs that everybody has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from pipeline.backbones import as_described, description, resolve
from pipeline.core.errors import PipelineError
from pipeline.engines import make_engine
from pipeline.engines import network_cache as kept
from pipeline.engines.openvino_engine import place

pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    photos = load_sample_images().images
    return np.stack([photo[top : top + 224, left : left + 224] for photo in photos for top in (0, 200)
                     for left in (0, 400)])  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, images):
    cache_dir = tmp_path_factory.mktemp("quantised")
    backbone = resolve("efficientnet_lite0", precision="int8")
    rows = make_engine(backbone, cache_dir=cache_dir)(images)
    return backbone, cache_dir, rows


def test_its_features_are_nearly_the_networks_own(made, images):
    _, cache_dir, rows = made
    exact = make_engine(resolve("efficientnet_lite0"), "cpu", cache_dir=cache_dir)(images)
    cosine = (rows * exact).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9
    assert not np.allclose(rows, exact, rtol=1e-3)  # it is another network


def test_the_spec_says_what_it_was_made_with(made):
    backbone, *_ = made
    known = backbone.spec.fields["quantisation"]
    assert known["nncf"] and known["openvino"] and known["images"] == 306 and len(known["photographs"]) == 32
    assert backbone.spec != resolve("efficientnet_lite0").spec
    assert "quantisation" not in resolve("efficientnet_lite0").spec.fields


@pytest.mark.slow  # making it takes a quarter of a minute
def test_made_again_it_is_the_same_network_bit_by_bit(made, images):
    backbone, cache_dir, rows = made
    file = place(cache_dir, backbone)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a damaged one is not used
    assert kept.read(file, backbone.spec) is None
    assert np.array_equal(make_engine(backbone, cache_dir=cache_dir)(images), rows)
    assert kept.read(file, backbone.spec)


def test_a_run_finds_its_network_after_the_libraries_changed(made, images):
    backbone, cache_dir, rows = made
    older = replace(backbone, quantisation={**backbone.quantisation, "nncf": "1.0"})
    kept.write(place(cache_dir, older), kept.read(place(cache_dir, backbone), backbone.spec), older.spec)
    again = as_described(description(older), Path())
    assert again.spec == older.spec
    assert np.array_equal(make_engine(again, cache_dir=cache_dir)(images), rows)
    place(cache_dir, older).unlink()
    with pytest.raises(PipelineError, match=r"cannot be made again as it was: it was made with nncf 1\.0, now "):
        make_engine(again, cache_dir=cache_dir)


@pytest.mark.parametrize("wanted", [{"engine": "torch"}, {"device": "cuda"}])
def test_other_engines_are_refused(made, wanted):
    backbone, cache_dir, _ = made
    with pytest.raises(PipelineError, match="int8 network runs on OpenVINO and the CPU"):
        make_engine(backbone, cache_dir=cache_dir, **wanted)
