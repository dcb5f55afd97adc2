"""Which images a page shows, and as what."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import Place, UnreadableImageError, decode, read_bytes
from ..data.augmentation import AUGMENTATIONS
from ..data.transforms import Transform
from ..thumbnails import jpeg, thumbnail

SIDE, TINY, QUALITY = 96, 56, 60
MOST, MOST_BYTES = 1200, 6_000_000  # thumbnails of a page, and what they may weigh


def chosen(rows: Sequence[dict[str, str]], most: int = MOST) -> list[int]:
    """Return which predictions are shown where not all can be: wrong ones first, then some of every class in turn."""
    wrong = [index for index, row in enumerate(rows) if row["label"] != row["prediction"]]
    # the most confident mistakes say most
    wrong.sort(key=lambda index: -float(rows[index]["prob"] or 0))
    classes = defaultdict(list)
    for index, row in enumerate(rows):
        if row["label"] == row["prediction"]:
            classes[row["label"]].append(index)
    deepest = max(map(len, classes.values()), default=0)
    right = [members[turn] for turn in range(deepest) for members in classes.values() if turn < len(members)]
    # however many mistakes there are, some of what went right is shown too
    some_right = right[: max(most - len(wrong), most // 4)]
    return wrong[: most - len(some_right)] + some_right


def embedded(root: Place, rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Return predictions with their thumbnails as data URLs, until the page would grow too heavy."""
    found, weight = [], 0
    for row in rows:
        source = data_url(jpeg(thumbnail(root / row["filename"], SIDE), QUALITY))
        weight += len(source)
        if weight > MOST_BYTES:
            break
        found.append({"src": source, "name": readable(row["filename"]), "label": readable(row["label"]),
                      "prediction": readable(row["prediction"]), "prob": float(row["prob"] or 0)})  # fmt: skip
    return found


def augmented(
    root: Place, rows: Sequence[dict[str, str]], name: str, transform: Transform, views: int = 6
) -> list[dict[str, str]]:
    """Return random training views of some images: what a network that is fine-tuned sees."""
    augment = AUGMENTATIONS[name](transform)
    found = []
    for row in rows:
        rng = np.random.default_rng(0)
        try:
            image = decode(read_bytes(root / row["filename"]))
        except UnreadableImageError:
            continue
        for _ in range(views):
            found.append({"src": data_url(jpeg(_small(augment(image, rng)), QUALITY)), "label": readable(row["label"])})
    return found


def _small(pixels: np.ndarray) -> Image.Image:
    view = Image.fromarray(pixels)
    view.thumbnail((SIDE, SIDE))
    return view


def tiny(path: Place) -> str:
    """Return an image as a URL, for what a pointer passes over."""
    return data_url(jpeg(thumbnail(path, TINY), QUALITY))


def data_url(content: bytes) -> str:
    """Return a JPEG file as a URL that needs no request."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def readable(text: str) -> str:
    """Return text that can be encoded: file names may hold any bytes."""
    return text.encode(errors="backslashreplace").decode()


def projected(rows: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Return (N, 2) maps of (N, D) features, each within 0..1: by PCA, and from 12 images on by t-SNE.

    Source of the latter: van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 2008.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    leading = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
    maps = {"PCA": leading[:, :2] if leading.shape[1] > 1 else np.repeat(leading, 2, axis=1)}
    if len(rows) >= 12:
        perplexity = min(30, (len(rows) - 1) / 3)
        maps["t-SNE"] = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(leading)
    return {name: (map_ - map_.min(0)) / np.maximum(np.ptp(map_, axis=0), 1e-9) for name, map_ in maps.items()}
