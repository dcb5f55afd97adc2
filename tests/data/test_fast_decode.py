"""Decoding large photographs at a fraction of their size: a rule of the spec, and only where asked for."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.backbones import as_described, description, from_description, resolve
from pipeline.data import decode
from pipeline.engines import TorchEngine
from pipeline.runs.classifier import load_image


def photo(width: int, height: int, kind: str = "JPEG", **settings) -> bytes:
    buffer = BytesIO()
    picture = Image.fromarray(load_sample_images().images[0]).resize((width, height), Image.Resampling.LANCZOS)
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (500, 375)),
        ((1400, 1023), (1400, 1023)),  # half of it is less than twice 256
        ((1400, 1024), (700, 512)),
        ((1025, 1401), (513, 701)),  # rounded up, as a JPEG decoder does
        ((3000, 2048), (750, 512)),
        ((4100, 4096), (513, 512)),
        ((9000, 600), (9000, 600)),
    ],
)
def test_both_sides_stay_twice_as_long_as_needed(size, expected):
    assert decode(photo(*size), needed=256).size == expected
    assert decode(photo(*size)).size == size


def test_an_image_that_is_turned_comes_out_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(photo(1400, 1100, exif=exif), needed=256).size == (550, 700)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_come_out_the_same(mode):
    buffer = BytesIO()
    Image.open(BytesIO(photo(1100, 1100))).convert(mode).save(buffer, "JPEG")
    scaled, whole = (decode(buffer.getvalue(), needed=needed) for needed in (256, None))
    assert scaled.mode == whole.mode == "RGB"
    small, expected = (np.asarray(image.resize((256, 256))).astype(int) for image in (scaled, whole))
    assert np.abs(small - expected).mean() < 1


def test_other_formats_are_decoded_whole():
    assert decode(photo(1100, 1100, "PNG"), needed=256).size == (1100, 1100)


def test_it_is_a_rule_of_the_spec_that_is_kept_with_the_run(tmp_path):
    plain, fast = resolve(), resolve(fast_decode=True)
    assert [field for field, _, _ in fast.spec.differences(plain.spec)] == ["decode.scaled"]
    content = photo(2100, 2100)
    assert plain.decode(content).size == (2100, 2100)
    for backbone in (fast, from_description(description(fast), tmp_path), as_described(description(fast), tmp_path)):
        assert backbone.spec == fast.spec
        assert load_image(content, decode=backbone.decode).size == (525, 525)


def test_features_stay_close():
    plain, fast = resolve(), resolve(fast_decode=True)
    content = photo(4000, 3000, quality=92)
    engine = TorchEngine(plain, "cpu")
    whole, scaled = (engine(backbone.transform(backbone.decode(content))[None].copy())[0] for backbone in (plain, fast))
    cosine = whole @ scaled / np.linalg.norm(whole) / np.linalg.norm(scaled)
    assert 0.999 < cosine < 1 - 1e-6
