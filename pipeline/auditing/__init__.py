"""Before believing a score: what cached features tell of the images behind it.

`findings` looks at features, labels and digests alone; `rescoring` scores runs again without the leaked images;
`sheets` shows the images.
"""

from __future__ import annotations

from .findings import Audit, Group, audit_cache
from .rescoring import Rescored, rescore
from .sheets import write_sheets
from .similar import NEAR

__all__ = ["NEAR", "Audit", "Group", "Rescored", "audit_cache", "rescore", "write_sheets"]
