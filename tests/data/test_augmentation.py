"""Random views: distributed as torchvision's, and decided by the given generator alone."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from images import photograph
from PIL import Image

from pipeline.core.errors import UnknownNameError
from pipeline.data.augmentation import AUGMENTATIONS, crop_box
from pipeline.data.transforms import Transform

TRANSFORM = Transform((64, 64), (56, 48), "bicubic")
IMAGE = photograph(150, 100)


@pytest.fixture(params=sorted(AUGMENTATIONS))
def augment(request):
    return AUGMENTATIONS[request.param](TRANSFORM)


def test_every_augmentation_gives_bytes_of_the_networks_size(augment):
    for image in (IMAGE, photograph(40, 300), photograph(1, 1)):
        pixels = augment(image, np.random.default_rng(0))
        assert pixels.shape == (56, 48, 3)
        assert pixels.dtype == np.uint8


def test_the_generator_alone_decides_in_any_thread(augment):
    import torch

    def view(seed: int) -> np.ndarray:
        return augment(IMAGE, np.random.default_rng(seed))

    torch.manual_seed(1)
    alone = [view(seed) for seed in range(24)]
    torch.manual_seed(2)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(view, range(24)))
    assert all(map(np.array_equal, alone, together))


def test_torchs_own_generator_gives_the_same_numbers_while_threads_augment(augment):
    """Dropout draws from it, in the main thread, while others decode."""
    import torch

    torch.manual_seed(0)
    alone = torch.rand(4000, 8)
    torch.manual_seed(0)
    with ThreadPoolExecutor(4) as pool:
        views = [pool.submit(augment, IMAGE, np.random.default_rng(seed)) for seed in range(200)]
        together = torch.stack([torch.rand(8) for _ in range(4000)])
        assert all(view.result().any() for view in views)
    assert torch.equal(together, alone)


@pytest.mark.parametrize(("name", "fewest", "most"), [("none", 1, 1), ("cifar", 4, 4), ("tutorial", 35, 40)])
def test_views_differ_from_draw_to_draw_as_far_as_the_augmentation_goes(name, fewest, most):
    rng = np.random.default_rng(0)
    views = {AUGMENTATIONS[name](TRANSFORM)(IMAGE, rng).tobytes() for _ in range(40)}
    assert fewest <= len(views) <= most


@pytest.mark.parametrize("name", ["trivial-augment", "rand-augment"])
def test_a_policy_changes_more_than_the_crop_and_flip_before_it(name):
    changed = 0
    for seed in range(20):
        cropped = AUGMENTATIONS["tutorial"](TRANSFORM)(IMAGE, np.random.default_rng(seed))
        changed += not np.array_equal(AUGMENTATIONS[name](TRANSFORM)(IMAGE, np.random.default_rng(seed)), cropped)
    assert changed > 12


def test_an_augmentation_reaches_worker_processes(augment):
    copy = pickle.loads(pickle.dumps(augment))
    assert np.array_equal(copy(IMAGE, np.random.default_rng(3)), augment(IMAGE, np.random.default_rng(3)))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (90, 600), (700, 60)])
def test_crops_are_distributed_as_torchvisions(height, width):
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = Image.new("RGB", (width, height))
    ours = np.array([crop_box(height, width, rng) for _ in range(4000)])
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4


def test_a_crop_has_the_pixels_of_torchvisions_resized_crop():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import hflip, resized_crop

    augment = AUGMENTATIONS["tutorial"](TRANSFORM)
    for seed in range(20):
        box = crop_box(IMAGE.height, IMAGE.width, np.random.default_rng(seed))
        theirs = resized_crop(IMAGE, *box, list(TRANSFORM.crop), InterpolationMode.BICUBIC)
        ours = augment(IMAGE, np.random.default_rng(seed))
        assert np.array_equal(ours, np.asarray(theirs)) or np.array_equal(ours, np.asarray(hflip(theirs)))


def test_flips_are_fair():
    plain = TRANSFORM(IMAGE)
    rng = np.random.default_rng(0)
    views = [AUGMENTATIONS["cifar"](TRANSFORM)(IMAGE, rng) for _ in range(800)]
    for same in (plain, plain[:, ::-1], plain[::-1], plain[::-1, ::-1]):
        assert 150 < sum(np.array_equal(view, same) for view in views) < 250


def test_an_unknown_augmentation_is_named_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"Unknown augmentation 'tutorials'\. Did you mean 'tutorial'"):
        AUGMENTATIONS["tutorials"]
