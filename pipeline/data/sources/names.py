"""Which names inside an archive or a store are images, and which are not to be trusted."""

from __future__ import annotations

import re

from ..listing import is_hidden, why_no_image_name

_DRIVE = re.compile(r"[A-Za-z]:")


def clean(name: str) -> str:
    """Return a member's name without a leading ``./``."""
    while name.startswith("./"):
        name = name[2:]
    return name


def is_plain(name: str) -> bool:
    """Return whether a member's name stays inside of what holds it, and can be told apart from others."""
    parts = re.split(r"[/\\]", name)
    return not (".." in parts or "." in parts or "" in parts or "\0" in name or _DRIVE.match(name))


def verdict(name: str) -> str | None:
    """Return why a member is not to be used: an empty reason for an image, None for litter to pass over silently."""
    if not is_plain(name):
        return "no plain name inside of the archive"
    parts = name.split("/")
    if any(map(is_hidden, parts)):
        return None
    return why_no_image_name(parts[-1])
