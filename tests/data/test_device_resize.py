"""Resizing by matrix products on a torch device gives Pillow's pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.data import Transform, UnreadableImageError
from pipeline.data.device_resize import Plan, Resizing, Side, resized, resizing_of
from pipeline.data.transforms import FITS, INTERPOLATIONS

SIZES = [(427, 640), (640, 427), (375, 500), (333, 333), (224, 224), (50, 60), (37, 411), (1, 1), (90, 1), (300, 3)]

SIDES = [((256, 256), (224, 224)), ((200, 240), (224, 224)), ((73, 91), (64, 97))]  # resized to, cropped to


def photo(height: int, width: int) -> Image.Image:
    """A part of a real photograph; a small one enlarged where it is not large enough."""
    source = Image.fromarray(load_sample_images().images[(height + width) % 2])
    source = source.resize((max(width, 640), max(height, 427)))
    return source.crop((0, 0, width, height))


def on_device(images: list[Image.Image], transform: Transform) -> np.ndarray:
    tensors = [torch.from_numpy(np.array(image)) for image in images]
    how = [resizing_of(transform, image.height, image.width) for image in images]
    return resized(tensors, Plan.of(how, transform.crop, transform.interpolation), transform.fill).numpy()


def assert_pillows_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("fit", "interpolation", "sides"), [
    (fit, interpolation, SIDES[(a + b) % len(SIDES)]) for a, fit in enumerate(FITS)
    for b, interpolation in enumerate(INTERPOLATIONS)])
def test_any_transform_gives_pillows_pixels(fit, interpolation, sides):
    transform = Transform(*sides, interpolation, fit=fit, fill=(124, 116, 104))
    images = [photo(*size) for size in SIZES]
    assert_pillows_pixels(on_device(images, transform), np.stack([transform(image) for image in images]))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_part_of_each_image_is_resized_and_mirrored_as_by_pillow(interpolation):
    rng, images, how, expected = np.random.default_rng(0), [], [], []
    for number in range(40):
        image = photo(*SIZES[number % 6])
        height, width = (int(rng.integers(1, side + 1)) for side in (image.height, image.width))
        top, left = int(rng.integers(image.height - height + 1)), int(rng.integers(image.width - width + 1))
        how.append(Resizing(Side.whole(top, height, 96), Side.whole(left, width, 128), bool(number % 2)))
        part = image.crop((left, top, left + width, top + height))
        for size in ((128, height), (128, 96)):
            part = part.resize(size, INTERPOLATIONS[interpolation])
        expected.append(np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else part))
        images.append(torch.from_numpy(np.array(image)))
    found = resized(images, Plan.of(how, (96, 128), interpolation)).numpy()
    assert_pillows_pixels(found, np.stack(expected))


def test_what_lies_beyond_an_image_in_a_padded_batch_counts_nothing():
    transform = Transform((64, 64), (64, 64))
    image = photo(100, 120)
    batch = torch.full((1, 200, 200, 3), 255, dtype=torch.uint8)
    batch[0, :100, :120] = torch.from_numpy(np.array(image))
    found = resized(batch, Plan.of([resizing_of(transform, 100, 120)], (64, 64), "bilinear"))
    assert_pillows_pixels(found.numpy()[0], transform(image))


def test_very_tall_images_are_left_to_pillow_and_absurd_ones_refused():
    transform = Transform((256, 256), (224, 224))
    assert resizing_of(transform, 1010, 10) is None
    with pytest.raises(UnreadableImageError, match="too elongated to resize: 60000 x 1"):
        resizing_of(transform, 1, 60_000)
