"""Training from cached activations is training from images, without the images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning_support import Killed, bar_that, kill, one_thread, same, small_backbone, small_photos  # noqa: F401
from PIL import Image

import pipeline
from pipeline.backbones import resolve
from pipeline.backbones.cuts import Flow
from pipeline.core.errors import PipelineError
from pipeline.finetuning import FinetuneSettings
from pipeline.finetuning.activations import CachedActivations
from pipeline.finetuning.batches import epoch_order, grouped
from pipeline.store import FeatureCache

QUICK = {"epochs": 2, "batch_size": 6, "lr": 0.01, "augmentation": "none", "precision": "float32", "unfreeze": "last-2"}
NETWORKS = {
    "lite0": lambda: small_backbone(),
    "resnet18": lambda: replace(resolve("resnet18", "random"), transform=small_backbone().transform),
    "vit": lambda: resolve("timm:test_vit", "random"),
}
ABOVE = {"partial": {}, "discriminative": {}, "gradual": {"epochs": 3}, "lp-ft": {}, "interpolate": {},
         "head-only": {"unfreeze": ""}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    small_photos(folder)
    return folder


@pytest.fixture
def tuned(photos, tmp_path):
    """Fine-tune; return metrics and every tensor of the run."""

    def tune(backbone, cache_dir=None, runs_dir=tmp_path / "runs", progress=None, **settings):
        run = pipeline.finetune(str(photos / "photos"), backbone, FinetuneSettings(**{**QUICK, **settings}),
                                cache_dir=cache_dir or photos / "cache", runs_dir=runs_dir,
                                **({"progress": progress} if progress else {}), overwrite=True)
        return run, tensors_of(run)

    return tune


def tensors_of(run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(run.path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def distance(one, other) -> float:
    """Return the largest difference of a tensor, of its length."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).norm() / max(float(other[name].double().norm()), 1e-9))
               for name in one)


@pytest.mark.parametrize("name", NETWORKS)
def test_cached_activations_give_the_weights_that_images_give(name, tuned):
    backbone = NETWORKS[name]()
    before = backbone.network().network.state_dict()
    _, images = tuned(backbone)
    exact, cached = tuned(backbone, cached=True, storage="float32")
    assert distance(cached, images) < 1e-4
    moved = {name for name in before if not torch.equal(before[name], cached[name])}
    assert moved == {name for name in before if not torch.equal(before[name], images[name])} != set()
    rounded, _ = tuned(backbone, cached=True)
    shown = [[(row["filename"], row["prediction"]) for row in run.predictions()] for run in (exact, rounded)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("strategy", ABOVE)
def test_every_strategy_trains_what_it_trains_from_images(strategy, tuned):
    backbone, settings = small_backbone(), {"strategy": strategy, **ABOVE[strategy]}
    before = backbone.network().network.state_dict()
    _, images = tuned(backbone, **settings)
    run, cached = tuned(backbone, cached=True, storage="float32", **settings)
    assert distance(cached, images) < 1e-3
    frozen = [name for name in before if name.startswith(("conv_stem", "bn0", "blocks.0.", "blocks.13."))]
    assert all(torch.equal(before[name], cached[name]) for name in frozen)  # statistics of norms too
    assert run.metrics["strategy"] == strategy and run.metrics["splits"]["test"]["n"] == 6


def test_no_image_is_decoded_in_training_and_the_run_predicts_what_it_was_scored_on(photos, tuned, monkeypatch):
    tuned(small_backbone(), cached=True)
    with monkeypatch.context() as blind:
        blind.setattr("pipeline.data.dataset.Dataset.read", lambda *a: pytest.fail("an image was read"))
        run, _ = tuned(small_backbone(), cached=True, strategy="lp-ft")
    assert run.metrics["seconds"]["extract"] > 0
    rows = {row["filename"]: row for row in run.predictions()}
    paths = [name for name in rows if name.startswith("val/")]
    again = pipeline.ImageClassifier.load(run).predict([str(photos / "photos" / name) for name in paths])
    assert [one.label for one in again] == [rows[name]["prediction"] for name in paths]


def test_views_are_drawn_from_those_that_are_cached(photos, tuned):
    run, _ = tuned(small_backbone(), cached=True, views=2, augmentation="flip")
    assert run.metrics["asked"]["finetune"]["views"] == 2
    cache = next(path for path in (photos / "cache" / "photos").glob("*.h5") if _views(path) == 2)
    with FeatureCache.open(cache) as opened:
        dataset = pipeline.load_dataset(str(photos / "photos"), cache_dir=photos / "cache")
        rows = CachedActivations(opened, dataset, FinetuneSettings(), torch.device("cpu"))
        groups = grouped(np.arange(len(dataset)), 5)
        found = torch.cat([batch.inputs for batch in rows.batches(groups, "flip", (0, 0))]).numpy()
        every = opened.read_rows(stored=True)
        same_as = [[bool((row == view).all()) for view in views] for row, views in zip(found, every, strict=True)]
        assert all(any(each) for each in same_as)
        assert 0 < sum(each == [True, False] for each in same_as) < len(same_as)
        plain = torch.cat([batch.inputs for batch in rows.batches(groups)]).numpy()
        assert (plain == every[:, 0]).all()
        rows.close()


def _views(path) -> int:
    with FeatureCache.open(path) as cache:
        return cache.views if cache.meta.get("shape") else 0


def test_the_second_cached_view_of_flip_is_the_mirror_image(photos):
    backbone = replace(small_backbone(), views=pipeline.Views(2, "flip"))
    path = next((photos / "photos" / "val").rglob("*.jpg"))
    plain, mirror = backbone.pixels(path.read_bytes())
    assert (plain[:, ::-1] == mirror).all() and (plain != mirror).any()


def test_what_does_not_fit_into_memory_is_read_in_blocks_every_image_once_an_epoch(photos, tuned, monkeypatch):
    tuned(small_backbone(), cached=True)
    dataset = pipeline.load_dataset(str(photos / "photos"), cache_dir=photos / "cache")
    path = next(path for path in (photos / "cache" / "photos").glob("*.h5") if _views(path) == 1)
    with FeatureCache.open(path) as cache:
        row = cache.shape[-1] * cache.dtype.itemsize
        monkeypatch.setattr("pipeline.finetuning.activations.LEAST_BYTES", 4 * row)
        rows = CachedActivations(cache, dataset, FinetuneSettings(image_memory=0), torch.device("cpu"))
        assert rows.streams
        train = dataset.select("train")
        orders = [rows.arranged(epoch_order(train, dataset.labels[train], (0, epoch), False), (0, epoch))
                  for epoch in (0, 0, 1)]
        assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
        assert sorted(orders[0]) == sorted(train)
        found = list(rows.batches(grouped(orders[0], 3), "none", (0, 0), first=2))
        assert np.concatenate([batch.indices for batch in found]).tolist() == orders[0][6:].tolist()
        held = cache.read_rows(stored=True)
        assert all((batch.inputs.numpy() == held[batch.indices]).all() for batch in found)
        rows.close()
    kept, streamed = tuned(small_backbone(), cached=True, image_memory=0.0)
    assert kept.metrics["splits"]["test"]["n"] == 6 and streamed


def test_what_is_read_in_runs_goes_on_to_the_same_weights_in_whatever_memory(photos, tmp_path, monkeypatch):
    def tune(name, memory, **more):
        return pipeline.finetune(
            str(photos / "photos"), small_backbone(), FinetuneSettings(**QUICK, cached=True, checkpoint_minutes=0,
                                                                       image_memory=memory),
            name=name, cache_dir=photos / "cache", runs_dir=tmp_path, **more)

    monkeypatch.setattr("pipeline.finetuning.activations.LEAST_BYTES", 4 * 768)
    whole = tensors_of(tune("whole", 0.0))
    with pytest.raises(Killed):
        tune("cut", 0.0, progress=bar_that(4, kill))
    assert same(tensors_of(tune("cut", 0.25, resume=True)), whole)
    assert not same(tensors_of(tune("all", 0.25)), whole)  # or the order would not have mattered


@pytest.mark.parametrize("what, after", [("Extracting", 1), ("finetune", 2), ("finetune", 4)])
def test_killed_anywhere_it_goes_on_to_the_same_weights(what, after, photos, tmp_path):
    def tune(folder, **more):
        return pipeline.finetune(
            str(photos / "photos"), small_backbone(), FinetuneSettings(**QUICK, cached=True, checkpoint_minutes=0),
            cache_dir=tmp_path / folder, runs_dir=tmp_path / folder / "runs", **more)

    whole = tensors_of(tune("whole"))
    with pytest.raises(Killed):
        tune("cut", progress=bar_that(after, kill, what))
    assert same(tensors_of(tune("cut", resume=True)), whole)


def test_a_changed_image_is_computed_again_and_never_served(tmp_path, tuned):
    small_photos(tmp_path)
    lines: list[str] = []

    def tune():
        lines.clear()
        pipeline.finetune(str(tmp_path / "photos"), small_backbone(), FinetuneSettings(**QUICK, cached=True),
                          cache_dir=tmp_path / "cache", runs_dir=tmp_path / "runs", log=lines.append)
        return lines[0]

    assert "32 computed, 0 reused" in tune()
    assert "all cached already" in tune()
    Image.new("RGB", (64, 64), "red").save(next((tmp_path / "photos" / "train").rglob("*.jpg")))
    assert "1 computed, 31 reused" in tune()


def test_an_unreadable_image_is_left_out_and_named(tmp_path):
    small_photos(tmp_path)
    next((tmp_path / "photos" / "train").rglob("*.jpg")).write_bytes(b"no image")
    run = pipeline.finetune(str(tmp_path / "photos"), small_backbone(), FinetuneSettings(**QUICK, cached=True),
                            cache_dir=tmp_path / "cache", runs_dir=tmp_path / "runs")
    assert run.metrics["skipped"] == 1 and run.metrics["splits"]["train"]["n"] == 17


@pytest.mark.parametrize("settings, said", [
    ({"unfreeze": ""}, "--unfreeze auto"),
    ({"mixup": 0.2}, "mixes pixels"),
    ({"augmentation": "cifar"}, "--views 2 or more"),
    ({"strategy": "scratch", "unfreeze": ""}, "random weights"),
    ({"unfreeze": "blocks.5.project_conv"}, "inside the block 'blocks.5'.*--unfreeze blocks.5 or --unfreeze blocks.6"),
    ({"views": 3, "augmentation": "flip"}, "its mirror image"),
    ({"storage": "float64"}, "float32"),
])
def test_what_cannot_be_cached_is_said(settings, said, photos, tmp_path):
    with pytest.raises(PipelineError, match=said):
        pipeline.finetune(str(photos / "photos"), small_backbone(),
                          FinetuneSettings(**{**QUICK, **settings, "cached": True}),
                          cache_dir=photos / "cache", runs_dir=tmp_path)
    assert not list(tmp_path.rglob("metrics.json"))


def test_views_without_a_cache_are_refused():
    with pytest.raises(PipelineError, match="for --cached"):
        FinetuneSettings(views=2)


def test_what_overflows_half_precision_is_refused_with_the_way_out(photos, monkeypatch):
    from pipeline.backbones.backbone import Backbone

    backbone = replace(small_backbone(), layer="blocks.3", storage="float16")
    with pytest.raises(PipelineError, match="--storage float32"):
        Backbone.stored(backbone, np.array([[1e6]], np.float32))


@pytest.mark.parametrize("name, cut", [("resnet18", "layer2.1"), ("densenet121", "features.transition1.pool"),
                                       ("vit_b_16", "encoder.layers.encoder_layer_3"), ("swin_t", "features.2")])
def test_cuts_leave_one_value_between_what_is_below_and_above(name, cut):
    from pipeline.backbones.backbone import find_architecture
    from pipeline.backbones.torchvision_models import laid_out

    network = laid_out(find_architecture(name))
    flow = Flow(network, (224, 224))
    cuts = flow.cuts
    assert cut in cuts
    assert not any("denselayer" in layer or "conv2" in layer for layer in cuts)
    images = torch.empty(2, 3, 224, 224, device="meta")
    seen = []
    network.get_submodule(cut).register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole = network(images)
    assert flow.above(cut)(seen[0]).shape == whole.shape


def test_activations_are_an_ordinary_cache_with_their_shape(photos, tmp_path):
    backbone = replace(small_backbone(), layer="blocks.10", storage="float16")
    with pipeline.extract(str(photos / "photos"), backbone, cache_dir=tmp_path).open() as cache:
        assert cache.meta["shape"] == [112, 2, 2] and cache.dtype == np.float16
        assert cache.shape == (32, 448) and not cache.problems()
        flat = replace(backbone, storage="")
        with pipeline.extract(str(photos / "photos"), flat, cache_dir=tmp_path).open() as vectors:
            assert "shape" not in vectors.meta and vectors.spec != cache.spec
            assert (vectors.read_rows().astype(np.float16) == cache.read_rows(stored=True)).all()
    again = pipeline.extract(str(photos / "photos"), backbone, cache_dir=tmp_path)
    assert again.computed == 0
    assert json.loads(json.dumps(FeatureCache.open(again.path).meta))["shape"] == [112, 2, 2]
