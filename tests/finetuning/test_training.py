"""Fine-tuning gives the answers that are known beforehand."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetuning_support import SMALL, one_thread, same, small_backbone, small_photos  # noqa: F401

from pipeline.backbones import resolve
from pipeline.core.errors import DataError, PipelineError
from pipeline.core.machine import available_memory
from pipeline.data import decode
from pipeline.engines import TorchEngine
from pipeline.evaluation.metrics import evaluate
from pipeline.finetuning import STRATEGIES, FinetuneSettings, train
from pipeline.finetuning.batches import Decoder, epoch_order, grouped
from pipeline.finetuning.optimisation import Targets, mix_images
from pipeline.heads import LinearHead, make_head

QUICK = {"epochs": 1, "batch_size": 6, "augmentation": "none", "precision": "float32"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_photos(tmp_path_factory.mktemp("finetuning"))


@pytest.fixture(scope="module")
def backbone():
    return small_backbone()


@pytest.fixture(scope="module")
def before(backbone):
    return backbone.network().network.state_dict()


def statistics(name: str) -> bool:
    return "running" in name or "num_batches" in name


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def features(dataset, backbone, indices) -> np.ndarray:
    return TorchEngine(backbone, "cpu")(np.stack([SMALL(decode(dataset.read(index))) for index in indices]))


def accuracy(dataset, result, split: str) -> float:
    scores = result.scores[split]
    return evaluate(dataset.labels[scores.indices], scores.probabilities)["accuracy"]


@pytest.mark.parametrize("strategy", ["head-only", "partial"])
def test_with_learning_rate_0_nothing_moves_and_no_buffer_of_the_frozen_part(strategy, dataset, backbone, before):
    result = train(dataset, backbone, FinetuneSettings(strategy=strategy, unfreeze="last-1", lr=0, **QUICK))
    moved = changed(before, result.state)
    assert {name for name in moved if not name.startswith("bn1.")} == set()
    assert all(map(statistics, moved))
    assert bool(moved) == (strategy == "partial")
    assert not result.weight.any() and not result.bias.any()


def test_partial_moves_exactly_the_named_parameters(dataset, backbone, before):
    # with the norms' statistics in use: in training mode a bias before a norm has no effect, hence no gradient
    settings = FinetuneSettings(strategy="partial", unfreeze="blocks.14", **QUICK, lr=0.01, freeze_norm=True)
    result = train(dataset, backbone, settings)
    named = {name for name in before if name.startswith(("blocks.14.", "blocks.15.", "conv_head.", "bn1."))}
    expected = {name for name in named if not statistics(name)}
    assert changed(before, result.state) == expected
    parameters = sum(before[name].numel() for name in expected)
    assert result.trainable_parameters == parameters + result.weight.size + result.bias.size


def test_partial_moves_the_statistics_of_the_trained_part_and_of_no_other(dataset, backbone, before):
    result = train(dataset, backbone, FinetuneSettings(strategy="partial", unfreeze="blocks.14", **QUICK, lr=0.01))
    named = {name for name in before if name.startswith(("blocks.14.", "blocks.15.", "conv_head.", "bn1."))}
    moved = changed(before, result.state)
    assert moved <= named and {name for name in named if statistics(name)} <= moved


def test_whole_moves_every_parameter_and_freezing_norms_keeps_their_statistics(dataset, backbone, before):
    two = QUICK | {"epochs": 2}
    kept = train(dataset, backbone, FinetuneSettings(**two, lr=0.03, freeze_norm=True)).state
    assert changed(before, kept) == {name for name in before if not statistics(name)}
    moved = changed(before, train(dataset, backbone, FinetuneSettings(**two)).state)
    assert {name for name in before if statistics(name)} <= moved


def test_head_only_equals_the_linear_head_on_cached_features_with_the_same_batches(dataset, backbone):
    settings = FinetuneSettings(strategy="head-only", **QUICK | {"batch_size": 4}, lr=0.01)
    result = train(dataset, backbone, settings)
    indices = dataset.select("train")
    order = epoch_order(indices, dataset.labels[indices], (settings.seed, 0), False)
    # LinearHead shuffles too: rows are laid so that its shuffle gives our order
    shuffle = torch.randperm(len(order), generator=torch.Generator().manual_seed(0)).numpy()
    rows = np.empty_like(order)
    rows[shuffle] = order
    head = LinearHead(scaling="none", epochs=1, batch_size=4, lr=0.01, seed=0)
    head.fit(features(dataset, backbone, rows), dataset.labels[rows])
    assert np.abs(head.coef_).max() > 1e-3
    np.testing.assert_allclose(result.weight, head.coef_, atol=1e-4)
    np.testing.assert_allclose(result.bias, head.intercept_, atol=1e-4)
    assert result.history[0]["train_loss"] == pytest.approx(head.history_[0]["train_loss"], abs=1e-4)


def test_lp_ft_scores_before_its_first_step_what_the_probe_scores(dataset, backbone):
    indices = dataset.select("train")
    probe = make_head("logistic").fit(features(dataset, backbone, indices), dataset.labels[indices])
    result = train(dataset, backbone, FinetuneSettings(strategy="lp-ft", **QUICK, lr=0, freeze_norm=True))
    for split in ("train", "val", "test"):
        scores = result.scores[split]
        expected = probe.predict_proba(features(dataset, backbone, scores.indices))
        np.testing.assert_allclose(scores.probabilities, expected, atol=1e-4)
    assert result.history[0]["epoch"] == 0
    assert result.history[0]["val_accuracy"] == accuracy(dataset, result, "val")


def test_a_probe_that_is_given_is_the_one_that_is_used(dataset, backbone):
    probe = np.full((2, 1280), 0.25), np.array([1.0, -1.0])
    result = train(dataset, backbone, FinetuneSettings(strategy="lp-ft", **QUICK, lr=0, freeze_norm=True), probe=probe)
    assert (result.weight == 0.25).all() and result.bias.tolist() == [1, -1]


def test_interpolate_is_the_probe_at_0_and_the_tuned_network_at_1_and_takes_the_best_on_val(dataset, backbone):
    lines = []
    settings = FinetuneSettings(strategy="interpolate", **QUICK | {"epochs": 2}, lr=0.01)
    result = train(dataset, backbone, settings, log=lines.append)
    found = {float(line.split()[1]): float(line.split()[-1]) for line in lines if line.startswith("mix")}
    assert len(found) == 11 and found[result.mix] == max(found.values())
    assert found[0.0] == pytest.approx(result.history[0]["val_accuracy"], abs=1e-4)
    assert found[1.0] == pytest.approx(result.history[result.best_epoch]["val_accuracy"], abs=1e-4)


def test_scratch_starts_from_other_weights_than_the_pretrained(dataset, backbone, before):
    result = train(dataset, backbone, FinetuneSettings(strategy="scratch", **QUICK, lr=0))
    convolutions = {name for name in before if "conv" in name}
    assert convolutions <= changed(before, result.state)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_ends_with_scores_of_all_splits_and_weights_that_fit(strategy, dataset, backbone):
    result = train(dataset, backbone, FinetuneSettings(strategy=strategy, **QUICK))
    assert {split: len(scores.indices) for split, scores in result.scores.items()} == {"train": 18, "val": 8, "test": 6}
    backbone.architecture.skeleton().load_state_dict(result.state)
    assert result.selection == "val" and result.weight.shape == (2, 1280)
    assert result.backbone.weights.digest != backbone.weights.digest or strategy in ("head-only", "gradual")


def test_small_learning_set_is_learned(dataset, backbone):
    result = train(dataset, backbone, FinetuneSettings(epochs=6, batch_size=6, lr=0.003, freeze_norm=True))
    assert accuracy(dataset, result, "val") == 1
    assert accuracy(dataset, result, "test") > 0.8  # of 6 images one may be wrong
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_best_epoch_on_val_is_the_first_of_the_best_and_its_weights_are_the_result(dataset, backbone):
    settings = FinetuneSettings(epochs=3, batch_size=6, lr=0.02, precision="float32", strategy="partial")
    result = train(dataset, backbone, settings)
    found = [line["val_accuracy"] for line in result.history]
    assert result.best_epoch == 1 + found.index(max(found))
    assert accuracy(dataset, result, "val") == pytest.approx(max(found))
    last = train(dataset, backbone, replace(settings, select="last"))
    assert (last.best_epoch, last.selection) == (3, "last")
    assert [line["val_accuracy"] for line in last.history] == found


def test_without_val_images_the_last_epoch_is_kept_and_interpolate_is_refused(dataset, backbone):
    alone = replace(dataset, splits=np.where(dataset.splits == "val", "none", dataset.splits))
    result = train(alone, backbone, FinetuneSettings(**QUICK))
    assert result.selection == "last" and "val_loss" not in result.history[0] and "val" not in result.scores
    with pytest.raises(PipelineError, match="val images"):
        train(alone, backbone, FinetuneSettings(strategy="interpolate", **QUICK))


def test_patience_ends_training_when_val_no_longer_improves(dataset, backbone):
    settings = FinetuneSettings(strategy="head-only", **QUICK | {"epochs": 30}, lr=0, patience=2)
    assert len(train(dataset, backbone, settings).history) == 3


def test_same_seed_same_weights_and_number_of_workers_or_cache_changes_nothing(dataset, backbone):
    settings = FinetuneSettings(epochs=1, batch_size=6, precision="float32", mixup=0.2, cutmix=1.0, resample=True)
    first = train(dataset, backbone, replace(settings, workers=1, image_memory=0))
    again = train(dataset, backbone, replace(settings, workers=4))
    other = train(dataset, backbone, replace(settings, seed=1))
    assert same(first.state, again.state) and (first.weight == again.weight).all()
    assert not same(first.state, other.state)


@pytest.mark.parametrize("augmentation", ["trivial-augment", "rand-augment"])
def test_dropout_and_augmentation_are_the_same_again_whatever_the_number_of_threads(augmentation, dataset):
    network = replace(resolve("efficientnet_b0", weights="random"), transform=SMALL)  # it drops whole blocks
    settings = FinetuneSettings(epochs=2, batch_size=3, precision="float32", augmentation=augmentation)
    one, many = (train(dataset, network, replace(settings, workers=count)) for count in (1, 8))
    assert same(one.state, many.state) and (one.weight == many.weight).all()


def test_gradients_of_a_batch_in_parts_add_up_to_the_same_step(dataset, backbone):
    settings = FinetuneSettings(**QUICK, lr=0.01, freeze_norm=True, class_weight="balanced", label_smoothing=0.1)
    whole, parts = train(dataset, backbone, settings), train(dataset, backbone, replace(settings, accumulate=3))
    for name, tensor in whole.state.items():
        torch.testing.assert_close(parts.state[name], tensor, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-5)


def test_broken_images_are_left_out_with_their_reason_and_no_other_image_is_affected(tmp_path, backbone):
    whole = small_photos(tmp_path)
    victims = [whole.select("train")[1], whole.select("val")[0]]
    for index in victims:
        place = whole.root / whole.paths[index]
        place.write_bytes(place.read_bytes()[:300])
    result = train(whole, backbone, FinetuneSettings(strategy="head-only", **QUICK, lr=0.01))
    assert set(result.failures) == {whole.paths[index] for index in victims}
    assert all("truncated" in reason for reason in result.failures.values())
    for split, missing in zip(("train", "val"), victims, strict=True):
        expected = [index for index in whole.select(split) if index != missing]
        assert result.scores[split].indices.tolist() == expected
        rows = features(whole, backbone, expected).astype(float)
        scores = rows @ result.weight.T + result.bias
        assert (scores.argmax(1) == result.scores[split].probabilities.argmax(1)).all()


def test_unlabelled_images_and_those_of_no_split_take_no_part(dataset, backbone):
    labels, splits = dataset.labels.copy(), dataset.splits.copy()
    ignored = dataset.select("train")[[0, 17]]
    labels[ignored[0]], splits[ignored[1]] = -1, "none"
    result = train(replace(dataset, labels=labels, splits=splits), backbone, FinetuneSettings(**QUICK))
    assert len(result.scores["train"].indices) == 16 and not set(ignored) & set(result.scores["train"].indices)


def test_training_images_of_one_class_are_refused(dataset, backbone):
    one = np.where((dataset.splits == "train") & (dataset.labels == 1), "none", dataset.splits)
    with pytest.raises(DataError, match="two classes"):
        train(replace(dataset, splits=one), backbone, FinetuneSettings(**QUICK))


def test_resampling_draws_classes_evenly_and_otherwise_each_image_comes_once():
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    indices = np.arange(1000) + 5000
    drawn = np.concatenate([epoch_order(indices, labels, (0, epoch), True) for epoch in range(20)])
    shares = np.bincount(labels[drawn - 5000]) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 0.02  # 20,000 draws: 0.02 is six standard deviations
    plain = epoch_order(indices, labels, (0, 0), False)
    assert sorted(plain) == indices.tolist() and plain.tolist() != indices.tolist()


def test_an_images_augmentation_changes_with_the_epoch_and_its_place_and_with_nothing_else(dataset):
    index = dataset.select("train")[0]

    def view(epoch: int, place: int, workers: int) -> np.ndarray:
        decoder = Decoder(dataset, SMALL, workers, 100)
        group = grouped(np.full(place + 1, index), place + 1)
        pixels = next(decoder.batches(group, "tutorial", (0, epoch))).inputs[place].numpy()
        decoder.close()
        return pixels

    assert (view(0, 0, 1) == view(0, 0, 3)).all()
    assert (view(0, 0, 1) != view(1, 0, 1)).any() and (view(0, 0, 1) != view(0, 1, 1)).any()


@pytest.mark.parametrize("memory", [0.25, 0])
def test_images_that_fit_into_memory_are_read_once_and_give_the_same_views(memory, tmp_path):
    dataset = small_photos(tmp_path)
    decoder = Decoder(dataset, SMALL, memory=memory)
    train, val = (np.flatnonzero(dataset.splits == split) for split in ("train", "val"))
    first = [torch.cat([batch.inputs for batch in decoder.batches(grouped(indices, 4), augmentation, (0, 0))])
             for indices, augmentation in ((train, "tutorial"), (val, "none"))]
    shutil.rmtree(tmp_path / "photos")
    again = [torch.cat([batch.inputs for batch in decoder.batches(grouped(indices, 4), augmentation, (0, 0))])
             for indices, augmentation in ((train, "tutorial"), (val, "none"))]
    decoder.close()
    if memory:
        assert all(map(np.array_equal, first, again)) and not decoder.failures
    else:
        assert not sum(map(len, again)) and len(decoder.failures) == len(train) + len(val)


def test_a_share_of_memory_is_kept_however_large_the_images(tmp_path):
    dataset = small_photos(tmp_path)
    train = np.flatnonzero(dataset.splits == "train")
    decoder = Decoder(dataset, SMALL, memory=4.5 * 4 * 80 * 64 / available_memory())  # four of the photos fit
    for _ in decoder.batches(grouped(train, 4), "tutorial"):
        pass
    shutil.rmtree(tmp_path / "photos")
    left = sum(len(batch.indices) for batch in decoder.batches(grouped(train, 4), "tutorial"))
    decoder.close()
    assert left == 4


def test_available_memory_is_the_least_of_the_machines_and_the_containers(tmp_path):
    def write(place: str, text: str) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)

    assert available_memory(tmp_path) > 0
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "100\n")
    assert available_memory(tmp_path) == 5000 * 1024
    write("sys/fs/cgroup/memory.max", "1000\n")
    assert available_memory(tmp_path) == 900
    write("sys/fs/cgroup/memory.current", "2000\n")
    assert available_memory(tmp_path) == 0


def test_mixing_keeps_the_weight_of_the_batch_and_mixes_images_in_the_share_of_their_labels():
    labels = torch.tensor([0, 1, 2, 3])
    images = labels.float().view(4, 1, 1, 1).expand(4, 3, 40, 40).contiguous()
    for kind in ("mixup", "cutmix"):
        for seed in range(5):
            targets = Targets(labels, torch.ones(4), torch.ones(4), 0.0)
            mixed = mix_images(images, targets, FinetuneSettings(**{kind: 1.0}), np.random.default_rng(seed))
            expected = targets.share * labels + (1 - targets.share) * targets.others
            torch.testing.assert_close(mixed.mean((1, 2, 3)), expected.float(), atol=1e-4, rtol=1e-4)
            assert float(targets.total()) == pytest.approx(4)


def test_loss_equals_torchs_weighted_smoothed_cross_entropy():
    scores, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    weights = torch.tensor([0.5, 1.0, 3.0])
    targets = Targets(labels, weights, torch.ones(8), 0.1)
    ours = targets.loss(scores, slice(0, 8)) / targets.total()
    torch.testing.assert_close(ours, torch.nn.CrossEntropyLoss(weights, label_smoothing=0.1)(scores, labels))


def test_average_of_weights_follows_its_definition(dataset, backbone):
    settings = FinetuneSettings(strategy="head-only", **QUICK | {"batch_size": 9}, lr=0.05, select="last")
    one = train(dataset, backbone, replace(settings, ema=0.0))
    averaged = train(dataset, backbone, replace(settings, ema=0.5))
    half = train(dataset, backbone, replace(settings, batch_size=18))  # another order of batches: for contrast
    assert not np.allclose(averaged.weight, one.weight) and not np.allclose(half.weight, one.weight)
    # two steps from zero: a1 = w1 / 2 and a2 = a1 / 2 + w2 / 2, and w1 is what momentum and w2 leave of it
    assert 0.25 < np.abs(averaged.weight).sum() / np.abs(one.weight).sum() < 0.75


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_lower_precision_learns_the_same_and_keeps_float32_weights(precision, dataset, backbone):
    settings = FinetuneSettings(**QUICK | {"precision": precision, "epochs": 2}, lr=0.003, freeze_norm=True)
    result = train(dataset, backbone, settings)
    full = train(dataset, backbone, replace(settings, precision="float32"))
    assert (result.precision, full.precision) == (precision, "float32")
    assert result.history[-1]["train_loss"] == pytest.approx(full.history[-1]["train_loss"], abs=0.05)
    assert not (result.weight == full.weight).all()
    assert {tensor.dtype for tensor in result.state.values()} == {torch.float32, torch.int64}


def test_training_leaves_torchs_random_numbers_as_they_were(dataset, backbone):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(dataset, backbone, FinetuneSettings(strategy="head-only", **QUICK))
    assert torch.equal(torch.get_rng_state(), state)


def test_tensorboard_gets_every_epochs_figures(tmp_path, dataset, backbone):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = FinetuneSettings(strategy="head-only", **QUICK | {"epochs": 2}, tensorboard=str(tmp_path / "board"))
    result = train(dataset, backbone, settings)
    written = events.EventAccumulator(str(tmp_path / "board"))
    written.Reload()
    for name in ("train_loss", "val_accuracy", "lr"):
        found = [(event.step, event.value) for event in written.Scalars(name)]
        assert found == [(line["epoch"], pytest.approx(line[name])) for line in result.history]
