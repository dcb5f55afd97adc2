"""A page about a run that needs nothing but a browser: `report.html` in the run's folder."""

from __future__ import annotations

from .page import write_report

__all__ = ["write_report"]
