"""Engines: the same rows on each, several threads at once, and a way on when one of them cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from pipeline.backbones import Backbone, as_described, description, resolve, resolve_again
from pipeline.backbones.weights import Architecture, Weights
from pipeline.core.errors import EngineError, PipelineError, UnknownNameError
from pipeline.data import Transform
from pipeline.engines import Embedder, Running, TorchEngine, make_engine
from pipeline.engines import openvino_engine as openvino
from pipeline.engines.embedding import available_cores
from pipeline.engines.engine import Replicas
from pipeline.engines.memory import FittingBatches

needs_openvino = pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
HEAVY = ("torch", "torchvision", "timm")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> Path:
    """A cache folder that keeps the networks converted so far."""
    return tmp_path_factory.mktemp("cache")


def pixels_for(backbone: Backbone, count: int = 6) -> np.ndarray:
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    crops = [pictures[n % 2].crop((20 * n, 10 * n, 300 + 20 * n, 280 + 10 * n)) for n in range(count)]
    return np.stack([backbone.transform(crop) for crop in crops])


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def least_cosine(rows: np.ndarray, expected: np.ndarray) -> float:
    return float(((rows * expected).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)).min())


def odd_backbone(network: type[nn.Module]) -> Backbone:
    """A backbone around any module, without weights."""
    transform = Transform(resize=(8, 8), crop=(8, 8))
    weights = Weights("none", "none", dict)
    return Backbone(Architecture("odd", network, lambda tag: transform, lambda tag: weights), weights, transform)


@needs_openvino
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"layer": "blocks.5"},
        {"layer": "blocks.10:mean"},
        {"name": "pixels"},
        {"name": "resnet18", "weights": "random"},
        {"name": "timm:vit_tiny_patch16_224", "weights": "random"},
        {"name": "timm:resnet10t", "weights": "random"},
    ],
    ids=lambda asked: "-".join(asked.values()) or "default",
)
def test_openvino_gives_torchs_rows(asked, cache_dir):
    if asked.get("name", "").startswith("timm:"):
        pytest.importorskip("timm")
    backbone = resolve(**asked)
    pixels = pixels_for(backbone, 3)
    expected = TorchEngine(backbone, "cpu")(pixels)
    engine = make_engine(backbone, "cpu", "openvino", cache_dir=cache_dir)
    assert engine.name == "openvino" and not engine.notes
    for batch in (1, 3):
        rows = np.concatenate([engine(pixels[start : start + batch]) for start in range(0, 3, batch)])
        assert rows.shape == expected.shape == (3, engine.features)
        assert rows.dtype == expected.dtype == engine.dtype
        assert least_cosine(rows, expected) > 0.9999
        assert relative_error(rows, expected) < 1e-4


@needs_openvino
def test_openvino_fills_small_batches_up_until_compiling_for_their_size_pays(cache_dir, monkeypatch):
    compiled, compile_ = [], openvino._compiled
    monkeypatch.setattr(openvino, "_compiled", lambda graph, *rest: (
        compiled.append(graph.input(0).shape[0]), compile_(graph, *rest))[1])
    backbone = resolve("pixels")
    pixels = np.concatenate([pixels_for(backbone)] * 7)[:40]
    expected = TorchEngine(backbone, "cpu")(pixels)
    make_engine(backbone, "cpu", "openvino", cache_dir=cache_dir)  # converts, and tries what it converted
    for batch_size, sizes in ((None, [8]), (4, [4]), (64, [8, 64])):
        compiled.clear()
        engine = make_engine(backbone, "cpu", "openvino", cache_dir=cache_dir, batch_size=batch_size)
        assert relative_error(engine(pixels), expected) < 1e-4
        assert compiled == sizes
    compiled.clear()
    engine = make_engine(backbone, "cpu", "openvino", cache_dir=cache_dir)
    in_vain = openvino.PAYS // 7
    for number in range(40):
        assert relative_error(engine(pixels[number : number + 1]), expected[number : number + 1]) < 1e-4
        assert compiled == ([8] if number < in_vain else [8, 1])
    assert engine(pixels[:0]).shape == (0, engine.features)


@needs_openvino
def test_bfloat16_means_about_the_same_on_both_engines(cache_dir):
    backbone, exact = resolve(precision="bfloat16"), resolve()
    pixels = pixels_for(backbone)
    expected = TorchEngine(exact, "cpu")(pixels)
    for engine in ("torch", "openvino"):
        rows = make_engine(backbone, "cpu", engine, cache_dir=cache_dir)(pixels)
        assert least_cosine(rows, expected) > 0.99


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_torch_compile_gives_torchs_rows_whatever_the_batch():
    backbone = resolve()
    pixels = pixels_for(backbone, 11)
    engine = make_engine(backbone, "cpu", "compile", batch_size=4)
    assert engine.name == "compile" and not engine.notes
    expected = TorchEngine(backbone, "cpu")(pixels)
    assert relative_error(engine(pixels), expected) < 1e-4
    assert relative_error(engine(pixels[:1]), expected[:1]) < 1e-4


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=needs_openvino)])
@pytest.mark.parametrize("workers", [0, 1, 5])
def test_rows_do_not_depend_on_the_workers(name, workers, cache_dir):
    backbone = resolve()
    pixels = pixels_for(backbone)
    images = [Image.fromarray(each) for each in pixels]
    expected = TorchEngine(backbone, "cpu")(np.stack([backbone.transform(image) for image in images]))
    embedder = Embedder.of(backbone, Running("cpu", name, 2, workers), cache_dir)
    jobs = [range(start, start + 3) for start in (0, 3)] * 3
    plain = [backbone.transform(image)[None] for image in images]
    found = list(embedder.map(lambda job: embedder.embed(job, plain.__getitem__), jobs))
    assert not any(failures for _, failures in found)
    assert relative_error(np.concatenate([rows for rows, _ in found]), np.tile(expected, (3, 1))) < 1e-5


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_an_engine_is_right_in_many_threads_at_once(name, cache_dir):
    backbone = resolve("efficientnet_lite0", layer="blocks.3:mean")
    engine = make_engine(backbone, "cpu", name, workers=2, cache_dir=cache_dir)
    pixels = pixels_for(backbone, 8)
    expected, wrong = engine(pixels), []

    def call(number: int) -> None:
        for _ in range(5):
            if relative_error(engine(pixels[number : number + 1]), expected[number : number + 1]) > 1e-5:
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_embedding_leaves_torchs_threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        embedder = Embedder.of(resolve("pixels"), Running("cpu", "torch", workers=available_cores() + 1))
        inside = list(embedder.map(lambda job: torch.get_num_threads(), range(8)))
        seen = []
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert set(inside) == {1}
        assert torch.get_num_threads() == 3 and seen == [3]
    finally:
        torch.set_num_threads(before)


@needs_openvino
def test_a_network_that_openvino_cannot_convert_runs_with_torch_and_says_so():
    class Bessel(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x).flatten(1)

    engine = make_engine(odd_backbone(Bessel), "cpu")
    assert engine.name == "torch" and engine.features == 192
    assert len(engine.notes) == 1 and "torch" in engine.notes[0] and "\n" not in engine.notes[0]


@needs_openvino
def test_a_conversion_that_gives_other_rows_is_not_used():
    class Forgetful(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1) * self.calls

    engine = make_engine(odd_backbone(Forgetful), "cpu")
    assert engine.name == "torch"
    assert "deviate" in engine.notes[0]


def test_without_openvino_torch_takes_its_place(monkeypatch):
    monkeypatch.setattr(openvino, "available", lambda: False)
    silent = make_engine(resolve("pixels"), "cpu", "auto")
    assert silent.name == "torch" and not silent.notes
    told = make_engine(resolve("pixels"), "cpu", "openvino")
    assert told.name == "torch" and "pip install" in told.notes[0]


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(PipelineError, match="tf32 is arithmetic of NVIDIA's GPUs"):
        make_engine(resolve("pixels", precision="tf32"), "cpu")


@needs_openvino
def test_a_precision_that_openvino_has_not_runs_with_torch():
    engine = make_engine(resolve("pixels", precision="float16"), "cpu")
    assert engine.name == "torch" and engine.dtype == np.float16
    with pytest.raises(EngineError):
        openvino.OpenVINOEngine(resolve("pixels", precision="float16"))


def test_engines_that_do_not_exist_or_fit_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'openvino'"):
        make_engine(resolve("pixels"), "cpu", "openvin")
    with pytest.raises(PipelineError, match="--device cpu"):
        make_engine(resolve("pixels"), "cuda", "openvino")


@needs_openvino
def test_a_later_process_needs_no_torch_and_gives_the_same_bits(cache_dir, tmp_path):
    backbone = resolve()
    pixels = pixels_for(backbone)
    expected = make_engine(backbone, "cpu", cache_dir=cache_dir)(pixels)
    np.save(tmp_path / "pixels.npy", pixels)
    loaded = after(f"""
import numpy as np
from pathlib import Path
from pipeline.backbones import resolve
from pipeline.engines import make_engine
engine = make_engine(resolve(), "auto" if {not torch.accelerator.is_available()} else "cpu",
                     cache_dir=Path({str(cache_dir)!r}))
np.save({str(tmp_path / "rows.npy")!r}, engine(np.load({str(tmp_path / "pixels.npy")!r})))
""")
    assert not loaded & {*HEAVY, "openvino_telemetry"}
    assert (np.load(tmp_path / "rows.npy") == expected).all()


@needs_openvino
def test_extracting_new_images_and_predicting_need_no_torch(tmp_path):
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    for n in range(24):
        folder = tmp_path / "photos" / ("china", "flower")[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pictures[n % 2].crop((8 * n, 5 * n, 250 + 8 * n, 250 + 5 * n)).save(folder / f"{n:02}.png")
    new = tmp_path / "photos" / "china" / "22.png"
    new.rename(tmp_path / "new.png")
    places = ["--cache-dir", str(tmp_path / "cache")]
    runs = ["--runs-dir", str(tmp_path / "runs")]
    data = ["--data", str(tmp_path / "photos")]
    cpu = ["--device", "cpu"]
    assert "torch" in after(commands(["extract", *data, *places, *cpu]))
    after(commands(["train-head", *data, *places, *runs]))
    (tmp_path / "new.png").rename(new)
    assert not after(commands(["extract", *data, *places, *cpu])) & set(HEAVY)
    assert not after(commands(["predict", *places, *runs, *cpu, str(new)])) & {*HEAVY, "sklearn"}


def test_a_second_extraction_from_python_imports_no_library_of_networks(tmp_path):
    for number, label in enumerate(("a", "b")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.fromarray(load_sample_images().images[number]).save(tmp_path / "photos" / label / "1.png")
    code = f"""
import pipeline
done = pipeline.extract({str(tmp_path / "photos")!r}, "resnet18", weights="random", cache_dir={str(tmp_path)!r})
print(done.computed)
"""
    assert "torchvision" in after(code)
    assert not after(code) & set(HEAVY)


def test_what_a_name_meant_is_remembered_without_importing_what_told_it(tmp_path):
    code = f"""
from pathlib import Path
from pipeline.backbones import resolve_again
backbone = resolve_again("resnet18", "random", cache_dir=Path({str(tmp_path)!r}))
print(backbone.spec.sha256, backbone.label)
"""
    assert after(code) >= {"torch", "torchvision"}
    assert not after(code) & set(HEAVY)
    fresh, again = resolve("resnet18", "random"), resolve_again("resnet18", "random", cache_dir=tmp_path)
    assert (again.spec, again.label, again.network().layer) == (fresh.spec, fresh.label, fresh.layer)
    (path,) = (tmp_path / "engines").iterdir()
    text = path.read_text()
    for damaged in ("", "[]", "{}", text.replace('"seed": 0', '"seed": 1'), text.replace("bilinear", "bicubic", 1)):
        path.write_text(damaged)
        assert resolve_again("resnet18", "random", cache_dir=tmp_path).spec == fresh.spec
        assert json.loads(path.read_text()) == json.loads(text)


def test_a_weights_file_that_changed_is_another_question(tmp_path):
    path = tmp_path / "own.pth"
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(resolve(weights="random", seed=seed).network().network.state_dict(), path)
        assert resolve_again("efficientnet_lite0", path, cache_dir=tmp_path).spec == resolve(weights=path).spec


@needs_openvino
def test_a_kept_network_that_was_damaged_is_made_anew(tmp_path):
    backbone = resolve("pixels")
    pixels = pixels_for(backbone)
    expected = make_engine(backbone, "cpu", cache_dir=tmp_path)(pixels)
    path = openvino.place(tmp_path, backbone)
    sound = path.read_bytes()
    middle = len(sound) // 2
    for damaged in (b"", sound[:-1], sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :], sound + b"x",
                    b"{}\n" + sound, b"[1]\n", sound.replace(b'"graph_bytes": ', b'"graph_bytes": 1')):
        path.write_bytes(damaged)
        assert openvino.network_cache.read(path, backbone.spec) is None
        assert (make_engine(backbone, "cpu", cache_dir=tmp_path)(pixels) == expected).all()
        assert openvino.network_cache.read(path, backbone.spec) is not None
    assert openvino.network_cache.read(path, resolve("pixels", precision="bfloat16").spec) is None


@needs_openvino
def test_a_network_of_other_libraries_is_replaced(tmp_path, monkeypatch):
    backbone = resolve("pixels")
    make_engine(backbone, "cpu", cache_dir=tmp_path)
    monkeypatch.setattr(openvino.network_cache, "installed", lambda library: "another")
    make_engine(backbone, "cpu", cache_dir=tmp_path)
    assert list((tmp_path / "engines").iterdir()) == [openvino.place(tmp_path, backbone)]


@needs_openvino
def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "engines").write_text("a file where the folder should be")
    engine = make_engine(resolve("pixels"), "cpu", cache_dir=tmp_path)
    assert engine.name == "openvino" and not engine.notes


def test_a_described_backbone_is_the_same_once_its_network_is_needed(tmp_path):
    backbone = resolve(layer="conv_head:mean")
    again = as_described(json.loads(json.dumps(description(backbone))), tmp_path)
    assert again.spec == backbone.spec
    pixels = pixels_for(backbone, 1)
    assert (TorchEngine(again, "cpu")(pixels) == TorchEngine(backbone, "cpu")(pixels)).all()


@pytest.mark.parametrize("fitting", [1, 3, 4, 100])
def test_memory_that_runs_out_halves_the_batch_and_goes_on(fitting):
    sizes, notes = [], []

    class Greedy(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > fitting:
                raise torch.OutOfMemoryError("out of memory")
            return x.flatten(1) * 2

    network = Greedy()
    batches = FittingBatches(lambda batch: network(torch.from_numpy(batch)).numpy(), notes)
    batch = np.random.default_rng(0).random((10, 4), np.float32)
    assert (batches(batch) == batch * 2).all()
    assert (batches(batch) == batch * 2).all()
    assert sum(size > fitting for size in sizes) == {1: 3, 3: 2, 4: 2, 100: 0}[fitting], "it learns from failures"
    assert len(notes) == (fitting < 10)


def test_one_image_that_does_not_fit_is_an_error_for_the_user():
    def run(batch):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(PipelineError, match="--device cpu"):
        FittingBatches(run, [])(np.zeros((4, 2)))


def test_one_thread_alone_runs_an_owned_network_in_batches_of_one_size():
    backbone = resolve("resnet18", weights="random")
    engine, seen = TorchEngine(backbone, "cpu", batch_size=4, owned=True), []
    engine.network.register_forward_pre_hook(lambda _, given: seen.append((threading.get_ident(), len(given[0]))))
    pixels, found = pixels_for(backbone), {}

    def work(count: int) -> None:
        found[count] = engine(pixels[:count])

    threads = [threading.Thread(target=work, args=(count,)) for count in (1, 3, 4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({thread for thread, _ in seen}) == 1
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert {size for _, size in seen} == {4}
    expected = TorchEngine(backbone, "cpu")(pixels)
    for count, rows in found.items():
        assert relative_error(rows, expected[:count]) < 1e-4


def test_several_devices_share_the_threads():
    backbone = resolve("pixels")
    counts = [0, 0]

    class Counting(TorchEngine):
        def __call__(self, pixels):
            counts[self.number] += 1
            return super().__call__(pixels)

        number = 0

    engines = [Counting(backbone, "cpu") for _ in counts]
    engines[1].number, counts[:] = 1, [0, 0]
    embedder = Embedder(Replicas(engines), batch_size=1, workers=2)
    pixels = pixels_for(backbone, 4)
    both = threading.Barrier(2)

    def compute(job: int) -> np.ndarray:
        if job < 2:
            both.wait()
        return embedder.engine(pixels[job : job + 1])

    rows = np.concatenate(list(embedder.map(compute, range(4))))
    assert (rows == TorchEngine(backbone, "cpu")(pixels)).all()
    assert min(counts) > 0 and sum(counts) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back so eagerly")
def test_freed_memory_is_not_faulted_in_again():
    code = """
import resource, sys
import numpy as np
from pipeline.engines.memory import keep_freed_memory
if len(sys.argv) > 1 and not keep_freed_memory(): sys.exit("skip")
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def layers():
    for _ in range(20): np.ones(5 * 2 ** 20)
layers(); before = faults(); layers(); print(faults() - before)
"""
    given, kept = (subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True)
                   for more in ([], ["keep"]))
    if "skip" in kept.stderr:
        pytest.skip("the C library is another")
    assert int(given.stdout) > 200 > int(kept.stdout)  # pages may be huge


def commands(arguments: list[str]) -> str:
    return f"from pipeline.cli import main\nassert main({arguments!r}) == 0\n"


def after(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after running some code."""
    names = (*HEAVY, "sklearn", "openvino_telemetry")
    script = f"{code}\nimport sys\nprint('LOADED', *[name for name in {names} if sys.modules.get(name)])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())
