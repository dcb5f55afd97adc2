"""Before believing a score: what cached features tell of the images behind it.

`findings` looks at features, labels and digests alone; `audit` draws them, and scores runs again without leaked images.
"""

from __future__ import annotations

from .audit import Rescored, rescore, write_sheets
from .findings import Audit, Group, audit_cache
from .similar import NEAR

__all__ = [
    "NEAR",
    "Audit",
    "Group",
    "Rescored",
    "audit_cache",
    "rescore",
    "write_sheets",
]
