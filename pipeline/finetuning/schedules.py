"""The learning rate over time."""

from __future__ import annotations

from math import cos, pi

from .settings import FinetuneSettings

# of one-cycle, as torch's OneCycleLR: the share of the time that the rate rises, where it starts, where it ends
RISE, START, END = 0.3, 1 / 25, 1 / 250_000


def rate_factor(settings: FinetuneSettings, done: float) -> float:
    """Return the factor of the learning rate after `done` epochs (a fraction within an epoch), from 0 to 1."""
    share = done / settings.epochs
    if settings.schedule == "step":
        factor = settings.gamma ** (int(done) // settings.step_size)
    elif settings.schedule == "cosine":
        factor = _eased(1.0, 0.0, share)
    elif settings.schedule == "one-cycle":
        factor = _eased(START, 1.0, share / RISE) if share < RISE else _eased(1.0, END, (share - RISE) / (1 - RISE))
    else:
        factor = 1.0
    return factor * min(1.0, done / settings.warmup) if settings.warmup else factor


def _eased(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + cos(pi * share)) / 2
