"""Results as text: JSON, notes, progress bars; tables are in `tables`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable
from typing import Any


def progress_bars() -> Any:
    """Return what long work reports to: bars for people (not in log files), there at once and gone when done."""
    from tqdm import tqdm

    class Bar(tqdm):
        def close(self) -> None:
            """Draw the end, which may have come too soon after what was drawn last, and clear it."""
            if not self.disable and self.n == self.total:
                self.refresh()
            super().close()

    def bar(total: int | None = None, desc: str = "", unit: str = "it") -> Any:
        scale = unit == "B"
        return Bar(total=total, desc=desc, unit=unit, unit_scale=scale, file=sys.stderr, leave=False,
                   disable=None)

    return bar


def working(what: str) -> Any:
    """Return a context in which people see what is being done, where that cannot be counted."""
    from tqdm import tqdm

    return tqdm(desc=what, bar_format="{desc} …", file=sys.stderr, leave=False, disable=None)


def print_beside_bars(line: str) -> None:
    """Print a line to standard error while a bar may be drawn there, which is cleared before and drawn again after."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def print_notes(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"note: {line}", file=sys.stderr)


class PrintedLog(logging.Handler):
    """Prints what rooms that have no way to return notes log while the `with` block lasts, each line once.

    Parameters
    ----------
    *rooms : str
        Names of their loggers.
    """

    def __init__(self, *rooms: str):
        super().__init__(logging.INFO)
        self._loggers, self._told = [logging.getLogger(room) for room in rooms], set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line, if it is new."""
        if (line := record.getMessage()) not in self._told:
            self._told.add(line)
            print_beside_bars(f"note: {line}")

    def __enter__(self) -> PrintedLog:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)


def print_calibration(run: dict[str, Any]) -> None:
    """Say what calibrating did to images that took no part in it."""
    if not (found := run.get("calibration")):
        return
    rows = "val images" if found["selection"] == "val" else "training images, each by a head that did not see it"
    optimistic = "; the same images chose its settings, so this is optimistic" if found["same_rows"] else ""
    if found["temperature"] == 1:
        print(f"{run['head']}, on {found['n']} {rows}: no temperature makes their log loss less, so probabilities stay")
    else:
        print(f"{run['head']}, calibrated on {found['n']} {rows}: temperature {found['temperature']:.3g}{optimistic}")
    for split, figures in found["held_out"].items():
        changes = ", ".join(f"{name} {figures['before'][key]:.4f} -> {figures['after'][key]:.4f}" for key, name in
                            (("log_loss", "log loss"), ("brier", "Brier score"), ("ece", "calibration error")))
        print(f"  {split}: {changes}; sets of {figures['set_size']:.2f} labels hold {100 * figures['set_coverage']:.1f}"
              f" % of the truth ({100 * found['coverage']:g} % wanted); {100 * figures['unfamiliar']:.1f} % unfamiliar")


def print_estimate(found: Any, options: argparse.Namespace) -> None:
    """Say what an extraction would take."""
    print_notes(found.notes)
    if options.json:
        return print_json({**dataclasses.asdict(found), "path": str(found.path)})
    failing = f", {found.known_failures:,} known to fail" if found.known_failures else ""
    copies = f", {found.duplicates:,} of them copies" if found.duplicates else ""
    print(f"{found.path} would hold {found.images - found.known_failures:,} images{copies}{failing}, "
          f"{found.skipped:,} files skipped")
    print(f"to compute  {found.to_compute:,} images; rows of {found.reused:,} are there")
    if found.to_compute:
        print(f"time        about {readable_time(found.seconds)}, at {found.images_per_second:.0f} images/s "
              f"({found.sampled:,} tried here, {found.failed:,} gave no features)")
    if found.pieces:
        named = {"decode": "decoding", "transfer": "transfer", "network": "the network"}
        rates = ", ".join(f"{named[name]} {rate:,.0f} images/s" for name, rate in found.pieces.items())
        print(f"alone       {rates}: {named[found.limited_by]} limits")
    print(f"disk        {readable_size(found.disk_bytes)}; {readable_size(found.disk_free)} are free")
    print(f"memory      {readable_size(found.memory_bytes)} in this trial; {readable_size(found.memory_free)} are free")
    if found.scaling:
        print_scaling(found.scaling)
    if found.disk_bytes > found.disk_free:
        print_notes(["That is more than is free; choose another place with --cache-dir."])


def print_scaling(found: Any) -> None:
    """Say what a cluster would take, and what that rests on."""
    why = (f"this machine cannot commit more than {found.commits_per_second:,.0f} rows/s"
           if found.limited_by == "commits" else "there are no more blocks of images than they have threads")
    print(f"cluster     {found.machines} machines like this one: about {readable_time(found.seconds)} "
          f"({100 * found.efficiency:.0f} % of what as many times this one would do), "
          f"{readable_time(found.finishing)} of it to assemble the file")
    print(f"            from {found.most_machines} machines on more gain nothing: {why}")
    print(f"            assumed: storage that gives them {readable_size(found.read_bytes_per_second)}/s of images, a "
          f"network that brings {readable_size(found.sent_bytes_per_second)}/s of rows here, and no failures")


def readable_time(seconds: float) -> str:
    for unit, length in (("days", 172800), ("hours", 7200), ("minutes", 120)):
        if seconds >= length:
            return f"{seconds / {'days': 86400, 'hours': 3600, 'minutes': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def printable(value: Any) -> str:
    """Return text that neither breaks a table (names may hold newlines) nor fails to encode."""
    text = str(value).encode(errors="backslashreplace").decode()
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, default=str))


def readable_size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def readable_age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
