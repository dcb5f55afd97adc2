"""Several backbones as one, their features side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.spec import Spec, joined_spec
from .backbone import Backbone, as_described, from_description
from .openvino_engine import is_prepared


@dataclass(frozen=True)
class JoinedBackbone:
    """Backbones whose features stand side by side in this order.

    Attributes
    ----------
    parts : tuple of Backbone
    """

    parts: tuple[Backbone, ...]

    @property
    def name(self) -> str:
        """The names of all of them."""
        return "+".join(part.name for part in self.parts)

    @property
    def spec(self) -> Spec:
        """Everything that can change a row of the features of all of them."""
        return joined_spec([part.spec for part in self.parts])


def of_run(fields: Mapping[str, Any], folder: Path, cache_dir: Path) -> Backbone | JoinedBackbone:
    """Find the backbone, or the several, that a run's ``config.toml`` describes.

    Raises
    ------
    WeightsError
        If the weights are gone, or are others than the run's.
    """
    if "joined" not in fields:
        backbone = as_described(fields, folder)
        return backbone if is_prepared(backbone.plain, cache_dir) else from_description(fields, folder)
    found = [of_run(part, folder, cache_dir) for part in fields["joined"]]
    return JoinedBackbone(tuple(part for one in found for part in one.parts))
