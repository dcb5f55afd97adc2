"""Data frames of what is otherwise lists of rows. pandas is imported where one is asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from .errors import PipelineError

Row = TypeVar("Row")


class Rows(list[Row]):
    """A list of rows, mappings or dataclasses, that a data frame can be made of."""

    def to_frame(self) -> Any:
        """Return a pandas data frame, a row each; what a field holds inside has columns like ``seconds.train``."""
        return frame(self)


def frame(rows: Iterable[Any]) -> Any:
    """Return a pandas data frame of mappings or dataclasses.

    Raises
    ------
    PipelineError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise PipelineError("Data frames take the package pandas: pip install pandas") from error
    return pd.DataFrame([_flat(asdict(row) if is_dataclass(row) and not isinstance(row, type) else row)
                         for row in rows])


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found
