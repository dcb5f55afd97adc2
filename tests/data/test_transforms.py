"""Our resize and crop against torchvision's and timm's own, pixel for pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import photograph
from PIL import Image

from pipeline.core.errors import PipelineError
from pipeline.data.files import UnreadableImageError
from pipeline.data.transforms import INTERPOLATIONS, Transform

SIDES = st.integers(1, 700)
METHODS = st.sampled_from(sorted(INTERPOLATIONS))
TARGETS = st.integers(1, 300)


def torchvision_result(image: Image.Image, resize, crop, method: str, version: int) -> np.ndarray:
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    module = v1 if version == 1 else v2
    mode = v1.InterpolationMode(method)
    return np.asarray(module.CenterCrop(crop)(module.Resize(resize, interpolation=mode)(image)))


@settings(deadline=None, max_examples=150)
@given(width=SIDES, height=SIDES, resize=TARGETS, crop=st.tuples(TARGETS, TARGETS), method=METHODS)
def test_short_side_resize_and_centre_crop_equal_torchvisions_for_every_size(width, height, resize, crop, method):
    if max(width, height) / min(width, height) * resize > 4000:
        return  # torchvision would need gigabytes here; ours refuses those by name, see below
    image = photograph(width, height)
    ours = Transform((resize, resize), crop, method)(image)
    assert np.array_equal(ours, torchvision_result(image, resize, crop, method, 1))
    assert np.array_equal(ours, torchvision_result(image, resize, crop, method, 2))


@settings(deadline=None, max_examples=60)
@given(width=SIDES, height=SIDES, resize=st.tuples(TARGETS, TARGETS), crop=st.tuples(TARGETS, TARGETS), method=METHODS)
def test_squash_equals_torchvisions_resize_to_a_given_height_and_width(width, height, resize, crop, method):
    image = photograph(width, height)
    ours = Transform(resize, crop, method, fit="squash")(image)
    assert np.array_equal(ours, torchvision_result(image, resize, crop, method, 2))


@settings(deadline=None, max_examples=120)
@given(
    width=st.integers(20, 600),
    height=st.integers(20, 600),
    size=st.tuples(st.integers(16, 260), st.integers(16, 260)),
    square=st.booleans(),
    mode=st.sampled_from(["center", "squash", "border", None]),
    share=st.sampled_from([0.875, 0.9, 0.95, 1.0, None]),
    method=st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos"]),
)
def test_timm_data_configs_give_timms_own_pixels(width, height, size, square, mode, share, method):
    from timm.data import create_transform

    height_width = (size[0], size[0]) if square else size
    config = {"input_size": (3, *height_width), "interpolation": method, "crop_pct": share, "crop_mode": mode}
    config |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    image = photograph(width, height)
    theirs = create_transform(**config, is_training=False, normalize=False)(image)
    assert np.array_equal(Transform.from_timm(config)(image), theirs.permute(1, 2, 0).numpy())


def test_every_torchvision_classification_preset_is_equalled_on_an_odd_size():
    import torch
    from torchvision.models import get_model_weights, list_models

    image = photograph(501, 333)
    presets = {}
    for model in list_models():
        for weights in get_model_weights(model):
            preset = weights.transforms()
            if type(preset).__name__ == "ImageClassification":
                presets[repr(preset)] = preset
    assert len(presets) > 20
    for preset in presets.values():
        ours = Transform.from_torchvision(preset)
        scaled = torch.tensor(ours(image)).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(ours.mean)[:, None, None], torch.tensor(ours.std)[:, None, None]
        assert torch.equal((scaled - mean) / std, preset(image))


def test_real_photographs_come_out_as_torchvisions(photos: Path):
    files = sorted((photos / "hymenoptera_data" / "val").rglob("*.jpg"))[::5]
    assert len(files) > 20
    ours = Transform((256, 256), (224, 224), "bilinear")
    for file in files:
        image = Image.open(file).convert("RGB")
        assert np.array_equal(ours(image), torchvision_result(image, 256, 224, "bilinear", 1)), file.name


def test_a_description_survives_json():
    transform = Transform((232, 232), (224, 200), "bicubic", (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), "inside", (1, 2, 3))
    assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    assert hash(Transform.from_dict(transform.to_dict())) == hash(transform)


@pytest.mark.parametrize("fields", [{"resize": [2, 2]}, {"resize": [2, 2], "crop": [2, 2], "colour": 1}, {"resize": 3}])
def test_a_description_of_something_else_is_a_clear_error(fields):
    with pytest.raises(PipelineError, match="Not the description of a transform"):
        Transform.from_dict(fields)


def test_an_extremely_elongated_image_is_refused_and_not_blown_up():
    with pytest.raises(UnreadableImageError, match="too elongated to resize: 1 x 60000"):
        Transform((256, 256), (224, 224))(Image.new("RGB", (1, 60000)))
    with pytest.raises(UnreadableImageError, match="too elongated to resize: 60000 x 1"):
        Transform((256, 256), (224, 224))(Image.new("RGB", (60000, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "nearest-exact"}, "Unknown interpolation 'nearest-exact'"),
        ({"fit": "tight"}, "Unknown fit 'tight'"),
        ({"crop": (0, 5)}, "two positive sizes"),
        ({"std": (0.0, 1, 1)}, "positive deviations"),
        ({"mean": (0.5,)}, "three means"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(PipelineError, match=message):
        Transform(**({"resize": (8, 8), "crop": (8, 8)} | change))


def test_presets_and_configs_without_a_counterpart_are_refused():
    from torchvision.transforms._presets import SemanticSegmentation

    config = {"input_size": (1, 28, 28), "interpolation": "bilinear", "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(PipelineError, match="this one has 1"):
        Transform.from_timm(config)
    with pytest.raises(PipelineError, match="Unknown crop mode 'corner'"):
        Transform.from_timm(config | {"input_size": (3, 28, 28), "crop_mode": "corner"})
    with pytest.raises(PipelineError, match="Not a torchvision image classification preset"):
        Transform.from_torchvision(SemanticSegmentation(resize_size=520))
