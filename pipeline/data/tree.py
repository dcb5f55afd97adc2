"""Folders by their names alone: those inside an archive or a store, listed as a folder on disk is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .listing import Level
from .samples import SPLIT_OF


class Tree:
    """Files sorted into the folders that their names tell.

    Parameters
    ----------
    entries : iterable of (str, str)
        Name and why it is not to be used; an empty reason for an image.
    strip : bool
        Look for the layout inside of the one folder that holds everything, if that is so and it is no split.

    Attributes
    ----------
    prefix : str
        The folder that paths given to `scan` and `walk` start in, with a slash; paths that come back are whole.
    """

    def __init__(self, entries: Iterable[tuple[str, str]], strip: bool = False):
        self.prefix = ""
        self._images: dict[str, list[str]] = {"": []}
        self._skipped: dict[str, list[tuple[str, str]]] = {}
        self._folders: dict[str, set[str]] = {"": set()}
        for name, reason in entries:
            folder = name.rpartition("/")[0]
            if reason:
                # a name that leads elsewhere makes no folder, and one that is no image makes no class
                self._skipped.setdefault(folder if folder in self._images else "", []).append((name, reason))
            else:
                if folder not in self._images:
                    self._make(folder)
                self._images[folder].append(name)
        while strip and not self._images[top := self.prefix.rstrip("/")] and len(self._folders[top]) == 1:
            only = next(iter(self._folders[top]))
            if only.lower() in SPLIT_OF or not self.prefix.count("/") < 8:
                break
            self.prefix += f"{only}/"

    def _make(self, folder: str) -> None:
        while folder and folder not in self._images:
            self._images[folder], self._folders[folder] = [], self._folders.get(folder, set())
            above, _, name = folder.rpartition("/")
            self._folders.setdefault(above, set()).add(name)
            folder = above

    def scan(self, inside: str = "") -> Level:
        """List one folder, as `listing.scan`; names are relative to it."""
        folder = (self.prefix + inside).rstrip("/")
        start = len(folder) + 1 if folder else 0
        images = sorted(name[start:] for name in self._images.get(folder, ()))
        # what lies outside of the folder that was stripped is told of with the rest
        skipped = sorted((name[start:] if name.startswith(folder) else name, reason)
                         for name, reason in self._skipped.get(folder, ()))  # fmt: skip
        return Level(images, [(name, False) for name in sorted(self._folders.get(folder, ()))], skipped)

    def walk(self, inside: str = "", bar: Any = None) -> Iterator[tuple[str, str]]:
        """Yield every file below a folder, that folder's own files first, each level sorted."""
        stack = [(self.prefix + inside).rstrip("/")]
        while stack:
            folder = stack.pop()
            yield from ((name, "") for name in sorted(self._images.get(folder, ())))
            yield from sorted(self._skipped.get(folder, ()))
            below = f"{folder}/" if folder else ""
            stack += [below + name for name in sorted(self._folders.get(folder, ()), reverse=True)]
            if bar is not None:
                bar.update(len(self._images.get(folder, ())))
