"""Cached views: the plain image, and random ones beside it that are the same whenever they are made again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from ..errors import PipelineError
from .augmentation import AUGMENTATIONS
from .digests import DIGEST_BYTES
from .transforms import Transform

DEFAULT_AUGMENTATION = "tutorial"
RULE = 1  # how draws follow from content, view and seed; part of the spec


@dataclass(frozen=True)
class Views:
    """How many views of each image there are, and how those beyond the plain one are drawn.

    View 0 is what the network sees when it is evaluated; views 1 to ``count - 1`` are augmented. What is drawn for a
    view depends on the image file's content, the number of the view and the seed, and on nothing else: not on split,
    order, workers or batches. Every image has all of its views, whatever its split: a row does not know its split, so
    re-splitting computes nothing, and predictions of held-out images can be averaged over views.

    Parameters
    ----------
    count : int
        V, the views of each image, the plain one included.
    augmentation : str
        A name in `AUGMENTATIONS` other than ``none``. Without meaning, as is the seed, where there is one view.
    seed : int

    Raises
    ------
    PipelineError
        If there is no such number of views, seed or augmentation, or it would only repeat the plain view.
    """

    count: int = 1
    augmentation: str = DEFAULT_AUGMENTATION
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("count", 1, 1000), ("seed", 0, 2**32 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                what = "number of views" if name == "count" else "seed of the views"
                raise PipelineError(f"The {what} is {value!r}; it must be a whole number from {least} to {most:,}.")
        AUGMENTATIONS[self.augmentation]
        if self.count == 1:  # equal views have equal fields
            object.__setattr__(self, "augmentation", DEFAULT_AUGMENTATION)
            object.__setattr__(self, "seed", 0)
        elif self.augmentation == "none":
            others = ", ".join(name for name in AUGMENTATIONS if name != "none")
            raise PipelineError(f"{self.count} views with augmentation 'none' would all be the plain one. Take another "
                                f"({others}), or leave the views out.")

    def __call__(self, image: Image.Image, content: bytes, transform: Transform) -> np.ndarray:
        """Return all views of an image.

        Parameters
        ----------
        image : PIL.Image.Image
            Mode RGB.
        content : bytes
            The image file that it came from.
        transform : Transform

        Returns
        -------
        (V, H, W, 3) uint8 array
        """
        plain = transform(image)
        if self.count == 1:
            return plain[None]
        augment = AUGMENTATIONS[self.augmentation](transform)
        digest = int.from_bytes(hashlib.sha256(content).digest()[:DIGEST_BYTES], "big")
        further = [augment(image, np.random.default_rng((self.seed, view, digest))) for view in range(1, self.count)]
        return np.stack([plain, *further])

    @property
    def label(self) -> str:
        """What is not as usual, for people; empty where there is one view."""
        if self.count == 1:
            return ""
        augmentation = self.augmentation if self.augmentation != DEFAULT_AUGMENTATION else ""
        return " ".join(filter(None, (f"{self.count} views", augmentation, f"seed {self.seed}" if self.seed else "")))

    @property
    def flags(self) -> list[str]:
        """The command line's words that ask for these views; none where there is one view."""
        usual, flags = Views(2), {"--augmentation": "augmentation", "--view-seed": "seed"}
        changed = [word for flag, name in flags.items() if getattr(self, name) != getattr(usual, name)
                   for word in (flag, str(getattr(self, name)))]
        return ["--views", str(self.count), *changed] if self.count > 1 else []

    def to_dict(self) -> dict[str, Any]:
        """Return what `Views` takes to make this again; empty where there is one view."""
        return {} if self.count == 1 else {field.name: getattr(self, field.name) for field in fields(self)}

    def described(self, transform: Transform) -> dict[str, Any]:
        """Return everything that decides the further views, for a cache's spec; empty where there is one view."""
        if self.count == 1:
            return {}
        settings = {name: value for name, value in vars(AUGMENTATIONS[self.augmentation](transform)).items()
                    if name != "transform"}
        return {**self.to_dict(), "augmentation": {"name": self.augmentation, **settings}, "rule": RULE}


PLAIN = Views()
