"""Several backbones as one, their features side by side."""

from __future__ import annotations

from dataclasses import dataclass

from ..store.spec import Spec, joined_spec
from .backbone import Backbone


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
