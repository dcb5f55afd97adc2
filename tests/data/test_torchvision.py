"""torchvision's own sets: files where they have files, else PNG files with the very pixels."""

from __future__ import annotations

import hashlib
import inspect
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from images import names_in, served, write_images
from PIL import Image

from pipeline.core.errors import DataError, UnknownNameError
from pipeline.data import load_dataset
from pipeline.data.torchvision_sets import SETS, class_names, list_torchvision


@pytest.fixture
def server(tmp_path: Path):
    """Yield a folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with served(folder) as address:
        yield folder, address


def tiny_cifar(address: str, folder: Path, per_batch: int = 12):
    """Write an archive in CIFAR-10's own format and return torchvision's class, pointed to it, and its images."""
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = {"batches.meta": pickle.dumps({"label_names": names})}
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        data = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": data, "labels": (np.arange(per_batch) % 10).tolist()})
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}

    class Tiny(CIFAR10):
        url = f"{address}/cifar.tar.gz"
        filename = "cifar.tar.gz"
        tgz_md5 = hashlib.md5((folder / "cifar.tar.gz").read_bytes()).hexdigest()
        train_list = [[f"data_batch_{number}", md5[f"data_batch_{number}"]] for number in range(1, 6)]  # noqa: RUF012
        test_list = [["test_batch", md5["test_batch"]]]  # noqa: RUF012
        meta = {**CIFAR10.meta, "md5": md5["batches.meta"]}  # noqa: RUF012

    return Tiny


def test_cifar10_becomes_files_with_the_very_pixels_labels_and_splits(server, tmp_path, capsys):
    folder, address = server
    source = tiny_cifar(address, folder)
    samples = list_torchvision("CIFAR10", tmp_path / "cache", name="cifar10", source=source)
    assert capsys.readouterr().out == ""
    assert samples.name == "cifar10"
    assert samples.classes[:3] == ("airplane", "automobile", "bird")
    assert (samples.splits == "train").sum() == 60
    assert (samples.splits == "test").sum() == 12
    for split, train in (("train", True), ("test", False)):
        original = source(str(tmp_path / "cache/downloads/torchvision"), train=train)
        for number, (image, label) in enumerate(original):
            path = f"{split}/{samples.classes[label]}/{number:06d}.png"
            assert samples.labels[samples.paths.index(path)] == label
            assert np.array_equal(np.asarray(Image.open(samples.root / path)), np.asarray(image))


def test_an_exported_set_is_read_again_without_torchvision(server, tmp_path):
    folder, address = server
    list_torchvision("CIFAR10", tmp_path / "cache", name="cifar10", source=tiny_cifar(address, folder))
    script = (
        "import sys; from pipeline.data import load_dataset; d = load_dataset('cifar10', cache_dir=sys.argv[1]);"
        "print(len(d), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path / "cache")], capture_output=True, text=True)
    assert ran.stdout == "72 False\n", ran.stderr
    asked = load_dataset("cifar10", cache_dir=tmp_path / "cache", val_fraction=0.3)
    assert len(asked.select("test")) == 12
    assert 0 < len(asked.select("val")) < 60


def test_a_torchvision_set_that_cannot_be_had_says_where_to_put_it(server, tmp_path):
    folder, address = server
    source = tiny_cifar(address, folder)
    (folder / "cifar.tar.gz").unlink()
    with pytest.raises(DataError, match=rf"Cannot get torchvision's CIFAR10: .*404.* into {tmp_path}/cache/downloads"):
        list_torchvision("CIFAR10", tmp_path / "cache", source=source)
    assert names_in(tmp_path / "cache/downloads") == ["torchvision"]


def test_files_of_a_torchvision_set_are_used_where_they_are(tmp_path, monkeypatch):
    from torchvision.datasets import EuroSAT

    own = tmp_path / "own"
    names = ["Forest/Forest_1.jpg", "Forest/Forest_2.jpg", "River/River_1.jpg", "River/River_2.jpg"]
    write_images(own / "eurosat/2750", *names)
    monkeypatch.setenv("PIPELINE_DATA", str(own))
    samples = list_torchvision("EuroSAT", tmp_path / "cache", source=EuroSAT)
    assert samples.root == own / "eurosat/2750"
    assert sorted(samples.paths) == names
    assert samples.classes == ("Forest", "River")
    dataset = load_dataset("torchvision:EuroSAT", cache_dir=tmp_path / "cache")
    assert dataset.name == "torchvision-EuroSAT"
    assert set(dataset.splits) <= {"train", "val"}


def test_every_torchvision_set_we_name_exists_and_takes_the_settings_we_give():
    from torchvision import datasets

    for kind, splits in SETS.items():
        parameters = inspect.signature(getattr(datasets, kind)).parameters
        assert "download" in parameters or "kwargs" in parameters, kind
        for settings in splits.values():
            assert set(settings) <= set(parameters), kind


def test_an_unknown_torchvision_set_is_named_with_a_suggestion(tmp_path):
    with pytest.raises(UnknownNameError, match=r"Unknown torchvision .* 'Flowers101'\. Did you mean 'Flowers102'"):
        load_dataset("torchvision:Flowers101", cache_dir=tmp_path)


def test_class_names_are_found_wherever_torchvision_keeps_them_and_stay_distinct():
    class Given:
        classes = (("tench", "Tinca tinca"), "crane", "crane")

    class Numbers:
        labels = np.array([0, 2, 1])

    assert class_names(Given()) == ["tench", "crane 1", "crane 2"]
    assert class_names(Numbers()) == ["0", "1", "2"]
