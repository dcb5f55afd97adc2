"""The data sets that have a name. A new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.progress import Progress
from ..core.registry import Registry
from .listing import Samples

DEFAULT_DATA = "phototiles"
TORCHVISION = "torchvision:"  # what follows is the name of one of torchvision's own sets


@dataclass(frozen=True)
class Builtin:
    """A data set that needs no path.

    Attributes
    ----------
    name : str
        On the command line, and of the folder of its caches.
    description : str
        One line.
    load : callable
        Takes the folder of caches and a progress callable; puts the images there if need be and lists them.
    """

    name: str
    description: str
    load: Callable[[Path, Progress], Samples]


def _phototiles(cache_dir: Path, progress: Progress) -> Samples:
    from .phototiles import list_phototiles

    return list_phototiles(cache_dir, progress)


def _hymenoptera(cache_dir: Path, progress: Progress) -> Samples:
    from .hymenoptera import list_hymenoptera

    return list_hymenoptera(cache_dir, progress)


def _cifar10(cache_dir: Path, progress: Progress) -> Samples:
    from .torchvision_sets import list_torchvision

    return list_torchvision("CIFAR10", cache_dir, progress, name="cifar10")


DATASETS: Registry[Builtin] = Registry("data set")
for _entry in (
    Builtin("phototiles", "952 tiles of 18 photographs, to be told apart; made on the spot, no download", _phototiles),
    Builtin("hymenoptera", "244 + 153 photographs of ants and bees; a download of 47 MB", _hymenoptera),
    Builtin("cifar10", "50,000 + 10,000 images of 32 x 32 pixels in 10 classes; a download of 170 MB", _cifar10),
):
    DATASETS[_entry.name] = _entry
