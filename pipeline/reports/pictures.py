"""Small pictures of images, one by one, many on a page, or in a report; an image that is gone is a grey square."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..core.errors import DataError, PipelineError
from ..data import Dataset, Place, UnreadableImageError, decode, place, read_bytes
from ..data.augmentation import AUGMENTATIONS, Augmentation
from ..data.transforms import Transform
from .fonts import font_for

SIDE, GAP, LINE = 150, 10, 15
GREY, INK, PAPER = (215, 215, 215), (30, 30, 30), (255, 255, 255)
PICTURE_SIDE, TINY, QUALITY = 96, 56, 60
MOST, MOST_BYTES = 1200, 6_000_000  # thumbnails of a page, and what they may weigh


def thumbnail(path: Place, side: int = SIDE) -> Image.Image:
    """Return an image at most `side` pixels wide and high; a grey square where there is none."""
    try:
        image = decode(read_bytes(path))
    except UnreadableImageError:
        return missing(side)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return image


def missing(side: int = SIDE) -> Image.Image:
    """Return the grey square that stands for an image that cannot be read."""
    square = Image.new("RGB", (side, side), GREY)
    if side >= SIDE // 2:
        ImageDraw.Draw(square).text((side // 2, side // 2), "no image", INK, font_for("no image", 12), anchor="mm")
    return square


def jpeg(image: Image.Image, quality: int = 70) -> bytes:
    """Return an image as a JPEG file."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def contact_sheet(
    root: Place | None, captions: Sequence[tuple[str, str]], title: str = "", columns: int = 6
) -> Image.Image:  # fmt: skip
    """Return a page of images, each with its file's name and a line below.

    Parameters
    ----------
    root : Path or Url, optional
        Where the paths start; None where they are whole.
    captions : sequence of (path, str)
        The text may have several lines.
    title : str
    columns : int
        At most.
    """
    places = [place(path) if root is None else root / path for path, _ in captions]
    lines = [[each.name, *text.split("\n")] for each, (_, text) in zip(places, captions, strict=True)]
    return grid([(thumbnail(each), own) for each, own in zip(places, lines, strict=True)], title, columns)


def dataset_sheet(
    dataset: Dataset, split: str | None = None, count: int = 24, augmentation: str | None = None, seed: int = 0
) -> tuple[Image.Image, int]:
    """Return a page of random images of a data set with their labels, and how many it holds.

    Parameters
    ----------
    dataset : Dataset
    split : str, optional
        Only images of this split.
    count : int
        At most.
    augmentation : str, optional
        A name in `AUGMENTATIONS`: show random training views.

    Raises
    ------
    DataError
        If there is no image to show.
    """
    rows = np.arange(len(dataset)) if split is None else dataset.select(split)
    if not len(rows) or count < 1:
        raise DataError(f"There is no image to show: {dataset.name!r} has {len(rows)} of split {split!r}.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(rows, min(count, len(rows)), replace=False)).tolist()
    augment = AUGMENTATIONS[augmentation](Transform((256, 256), (224, 224))) if augmentation else None
    cells = []
    for row in chosen:
        label = dataset.classes[dataset.labels[row]] if dataset.labels[row] >= 0 else "unlabelled"
        path = dataset.root / dataset.paths[row]
        image = thumbnail(path) if augment is None else _view(path, augment, rng)
        cells.append((image, [label, f"{dataset.splits[row]} · {path.name}"]))
    return grid(cells), len(cells)


def _view(path: Place, augment: Augmentation, rng: np.random.Generator) -> Image.Image:
    try:
        view = Image.fromarray(augment(decode(read_bytes(path)), rng))
    except UnreadableImageError:
        return missing()
    view.thumbnail((SIDE, SIDE))
    return view


def grid(cells: Sequence[tuple[Image.Image, Sequence[str]]], title: str = "", columns: int = 6) -> Image.Image:
    """Return a page of images with the lines that belong below each."""
    columns = max(1, min(columns, len(cells)))
    lines = max((len(texts) for _, texts in cells), default=0)
    side = max((max(image.size) for image, _ in cells), default=SIDE)
    across, down, head = side + GAP, side + GAP + LINE * lines, 2 * LINE if title else 0
    page = Image.new("RGB", (GAP + columns * across, GAP + head + -(-len(cells) // columns) * down), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), plain(title), INK, font_for(plain(title), 15))
    for index, (image, texts) in enumerate(cells):
        left, top = GAP + index % columns * across, GAP + head + index // columns * down
        page.paste(image, (left + (side - image.width) // 2, top + side - image.height))
        for number, text in enumerate(texts):
            draw.text((left, top + side + 2 + LINE * number), _fitting(text, side), INK, font_for(plain(text), 11))
    return page


def plain(text: str) -> str:
    """Return text on one line that any font can draw and any encoding hold."""
    shown = text.encode(errors="backslashreplace").decode()
    return "".join(character if character.isprintable() else "?" for character in shown)


def _fitting(text: str, width: int) -> str:
    """Return text shortened in the middle until it is no wider than `width` pixels."""
    shown, font = plain(text)[:200], font_for(plain(text), 11)
    kept = len(shown)
    while kept > 4 and font.getlength(shown) > width:
        kept -= 1
        text = plain(text)[:200]
        shown = f"{text[: kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def save(page: Image.Image, path: Path) -> None:
    """Write a page as a PNG file, or in the format that the file's name asks for.

    Raises
    ------
    PipelineError
        If it cannot be written, or the name asks for no known format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path)
    except (OSError, ValueError) as error:
        raise PipelineError(f"Cannot write {str(path)!r}: {error}.") from error


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
        source = data_url(jpeg(thumbnail(root / row["filename"], PICTURE_SIDE), QUALITY))
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
    view.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
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
