"""Stage one's way on an accelerator, proven with the CPU as the device: one thread runs the network, in full batches of
one size, on images that others only decode and the device resizes."""

from __future__ import annotations

import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbones import resolve
from pipeline.core.errors import PipelineError
from pipeline.data import load_dataset
from pipeline.data.decoding import decode
from pipeline.data.jpeg import decode_ordinary, read_header, turned
from pipeline.engines import Embedder, Running
from pipeline.engines.engine import Replicas
from pipeline.engines.torch_engine import TorchEngine
from pipeline.stage_one.extraction import extract_features
from pipeline.stage_one.reading import Reading

ENGINE = TorchEngine.__init__


@pytest.fixture
def owned(monkeypatch):
    """Have the torch engine treat the CPU as an accelerator; return the threads and batches that its network saw."""
    seen: list[tuple[str, int]] = []

    def init(self, *words, **settings):
        ENGINE(self, *words, **{**settings, "owned": True})
        forward = self.network.forward

        def spied(pixels):
            seen.append((threading.current_thread().name, len(pixels)))
            return forward(pixels)

        self.network.forward = spied

    monkeypatch.setattr(TorchEngine, "__init__", init)
    monkeypatch.setattr("pipeline.engines.embedding.MOST_BYTES", 0)  # nothing is resized before the device is there
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes, turned and upright, of several formats, one of them broken and one elongated."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(21):
        width, height = int(rng.integers(150, 420)), int(rng.integers(150, 420))
        noise = rng.integers(0, 256, (height // 12, width // 12, 3), np.uint8)
        image, exif = Image.fromarray(noise).resize((width, height)), Image.Exif()
        exif[0x0112] = number % 8 + 1
        place = root / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        if number % 7 == 3:
            image.save(place / f"{number}.png")
        elif number % 7 == 5:
            image.convert("L").save(place / f"{number}.jpg", exif=exif)
        else:
            image.save(place / f"{number}.jpg", quality=int(rng.integers(40, 96)), exif=exif)
    whole = (root / "a" / "0.jpg").read_bytes()
    (root / "a" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    Image.effect_noise((8, 1200), 60).convert("RGB").save(root / "b" / "tall.png")
    return root


def rows_of(cache):
    with cache.open() as opened:
        return opened.paths, opened.read_rows(np.arange(len(opened))), dict(opened.skipped)


def extracted(root, place, **how):
    backbone = resolve("efficientnet_lite0")
    running = Running("cpu", "torch", **how)
    return rows_of(extract_features(load_dataset(str(root), cache_dir=place), backbone, running, cache_dir=place))


def test_rows_are_those_of_the_processors_way_and_one_thread_ran_the_network(folder, tmp_path, owned, monkeypatch):
    paths, rows, skipped = extracted(folder, tmp_path / "owned", batch_size=8, workers=3)
    monkeypatch.setattr(TorchEngine, "__init__", ENGINE)
    expected_paths, expected, expected_skipped = extracted(folder, tmp_path / "usual", workers=2)
    assert list(paths) == list(expected_paths)
    assert skipped == expected_skipped and any("broken" in path for path in skipped)
    apart = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 1e-4
    assert {size for _, size in owned} == {8}
    assert len({name for name, _ in owned}) == 1 and owned[0][0].startswith("owner")


def test_two_devices_share_the_work(folder, tmp_path, owned):
    backbone = resolve("efficientnet_lite0")
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    both = Replicas([TorchEngine(backbone, "cpu", 4), TorchEngine(backbone, "cpu", 4)])
    reading = Reading(dataset, backbone.preprocessing, for_device=True)
    used = set()
    for engine in both.engines:
        launch = engine._launch
        engine._launch = lambda *words, launch=launch, engine=engine: (used.add(id(engine)), launch(*words))[1]
    embedder, indices = Embedder(both, 4, workers=4), np.arange(len(dataset))
    found = list(embedder.map(lambda batch: embedder.embed(batch, reading), embedder.batches(indices)))
    assert sum(len(rows) for rows, _ in found) + sum(len(failed) for _, failed in found) == len(dataset)
    assert {name.rpartition("_")[0] for name, _ in owned} == {"owner"} and {size for _, size in owned} == {4}
    assert len(used) == 2


def test_memory_that_runs_out_halves_the_batch_and_loses_no_row(folder, tmp_path, owned, monkeypatch):
    backbone = resolve("efficientnet_lite0")
    engine = TorchEngine(backbone, "cpu", 8)
    forward = engine.network.forward

    def small(pixels):
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("no room")
        return forward(pixels)

    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    reading = Reading(dataset, backbone.preprocessing, for_device=True)
    expected, _ = Embedder(engine, 8, workers=0).embed(np.arange(len(dataset)), reading)
    engine.network.forward = small
    rows, _ = Embedder(engine, 8, workers=0).embed(np.arange(len(dataset)), reading)
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert engine.batch_size == 2
    assert any("went on with 2" in note for note in engine.notes)
    engine.network.forward = lambda pixels: (_ for _ in ()).throw(torch.OutOfMemoryError("no room"))
    with pytest.raises(PipelineError, match="does not hold one image"):
        engine.images([reading(0)])


def test_failure_of_the_network_ends_the_run_and_keeps_what_is_committed(folder, tmp_path, owned, monkeypatch):
    def broken(*_):
        raise RuntimeError("device lost")

    monkeypatch.setattr("pipeline.engines.torch_engine.resized", broken)
    with pytest.raises(RuntimeError, match="device lost"):
        extracted(folder, tmp_path, batch_size=8, workers=2)
    monkeypatch.undo()
    _, rows, _ = extracted(folder, tmp_path, workers=2)
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("settings", [{"quality": 90}, {"quality": 30, "subsampling": 0, "progressive": True}], ids=str)
def test_ordinary_jpeg_files_give_pillows_pixels_without_pillow(orientation, settings):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(Image.fromarray(pixels).resize((106, 74)), exif=exif, **settings)
    found = turned(*decode_ordinary(content, 10**6))
    expected = plainly(content)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(decode(content)), expected)


def jpeg(image, **settings) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def plainly(content):
    """Decode with Pillow alone, as before there was another way."""
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB"))


def test_grey_files_are_ordinary_too():
    content = jpeg(Image.effect_noise((40, 30), 60))
    np.testing.assert_array_equal(turned(*decode_ordinary(content, 10**6)), plainly(content))


def test_what_is_not_ordinary_is_left_to_pillow():
    noise = Image.effect_noise((40, 30), 60)
    assert decode_ordinary(jpeg(noise.convert("CMYK")), 10**6) is None
    assert decode_ordinary(jpeg(noise), 40 * 30 - 1) is None  # larger than permitted: Pillow's reader says so
    assert decode_ordinary(jpeg(noise), 10**6, needed=7) is None  # which is decoded scaled
    assert decode_ordinary(jpeg(noise), 10**6, needed=8) is not None
    png = BytesIO()
    noise.save(png, "PNG")
    assert decode_ordinary(png.getvalue(), 10**6) is None
    whole = jpeg(noise.convert("RGB"))
    assert decode_ordinary(whole[: len(whole) // 2], 10**6) is None
    assert read_header(whole) is not None
    for packet, read in ((b"<x/>", True), (b"<tiff:Orientation>6</tiff:Orientation>", False)):
        segment = b"http://ns.adobe.com/xap/1.0/\0" + packet
        content = whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]
        assert (read_header(content) is not None) is read  # Pillow may read an orientation there


def test_changed_files_are_decoded_as_pillow_decodes_them_or_not_at_all():
    rng = np.random.default_rng(0)
    whole = jpeg(Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((80, 60)), quality=80)
    ours = 0
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(2, len(whole) if rng.random() < 0.5 else 400, size=3):
            content[place] = rng.integers(256)
        if (found := decode_ordinary(bytes(content), 10**6)) is not None:
            ours += 1
            np.testing.assert_array_equal(turned(*found), plainly(bytes(content)))
    assert ours > 20


def test_files_that_a_device_decodes_come_out_upright_in_their_place_and_broken_ones_fall_back(folder, tmp_path, owned):
    """With torchvision's decoder for processors in nvJPEG's place."""
    backbone = resolve("efficientnet_lite0", decoder="nvjpeg")
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    engine = TorchEngine(backbone, "cpu", 4)
    reading = Reading(dataset, backbone.preprocessing, for_device=True)
    kinds = {}
    for index in range(len(dataset)):
        try:
            kinds[index] = type(reading(index)).__name__
        except PipelineError:
            kinds[index] = "none"
    assert set(kinds.values()) == {"Encoded", "Decoded", "ndarray", "none"}
    rows, failures = Embedder(engine, 4, workers=0).embed(np.arange(len(dataset)), reading)
    exact = Reading(dataset, resolve("efficientnet_lite0").preprocessing)
    expected, unread = Embedder(engine, 4, workers=0).embed(np.arange(len(dataset)), exact)
    assert failures.keys() == unread.keys()
    cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


def test_a_file_that_the_device_cannot_decode_is_decoded_alone_or_named(folder, tmp_path, owned, monkeypatch):
    from pipeline.data import nvjpeg

    backbone = resolve("efficientnet_lite0", decoder="nvjpeg")
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    engine = TorchEngine(backbone, "cpu", 4)
    reading = Reading(dataset, backbone.preprocessing, for_device=True)
    expected, failures = Embedder(engine, 4, workers=0).embed(np.arange(len(dataset)), reading)

    def refused(files, device):
        raise nvjpeg.UndecodableError

    monkeypatch.setattr(nvjpeg, "decode_batch", refused)
    monkeypatch.setattr(nvjpeg, "decode", lambda content, header: None)  # Pillow decodes them
    rows, again = Embedder(engine, 4, workers=0).embed(np.arange(len(dataset)), reading)
    assert again == failures and rows.shape == expected.shape
    cosine = (rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.99


def test_predictions_and_scores_take_the_same_way(folder, tmp_path, owned):
    """`predict`, and what `finetune` says of its network, have the device resize, too."""
    from pipeline.finetuning.result import features_of

    backbone = resolve("efficientnet_lite0")
    dataset = load_dataset(str(folder), cache_dir=tmp_path)
    embedder = Embedder(TorchEngine(backbone, "cpu", 4), workers=2)
    indices, rows, failures = features_of(embedder, backbone, dataset, np.arange(len(dataset)))
    usual = Embedder(TorchEngine(backbone, "cpu", 4, owned=False), workers=0)
    usual.engine.resizes = False
    expected_indices, expected, unread = features_of(usual, backbone, dataset, np.arange(len(dataset)))
    np.testing.assert_array_equal(indices, expected_indices)
    assert failures == unread and len(failures) == 1
    np.testing.assert_allclose(rows, expected, atol=1e-3)
