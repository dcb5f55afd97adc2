"""Pages that need nothing but a browser: `report.html` about a run, and a comparison of several."""

from __future__ import annotations

from .comparison_page import write_comparison
from .page import write_report

__all__ = [
    "write_comparison",
    "write_report",
]
