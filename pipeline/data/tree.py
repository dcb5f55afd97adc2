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
    loose : list of (str, str)
        What is not to be used and lies in no folder with images below that one.
    """

    def __init__(self, entries: Iterable[tuple[str, str]], strip: bool = False):
        self.prefix, self.loose = "", list[tuple[str, str]]()
        self._images: dict[str, list[str]] = {"": []}
        self._skipped: dict[str, list[tuple[str, str]]] = {}
        others = []
        self._folders: dict[str, set[str]] = {"": set()}
        for name, reason in entries:
            folder = name.rpartition("/")[0]
            if reason:
                others.append((name, reason))
            else:
                if folder not in self._images:
                    self._make(folder)
                self._images[folder].append(name)
        while strip and not self._images[top := self.prefix.rstrip("/")] and len(self._folders[top]) == 1:
            only = next(iter(self._folders[top]))
            if only.lower() in SPLIT_OF or not self.prefix.count("/") < 8:
                break
            self.prefix += f"{only}/"
        # a name that leads elsewhere makes no folder, and a file that is no image makes no class
        for name, reason in others:
            folder = name.rpartition("/")[0]
            inside = folder in self._images and f"{folder}/".startswith(self.prefix)
            (self._skipped.setdefault(folder, []) if inside else self.loose).append((name, reason))

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
        skipped = sorted((name[start:], reason) for name, reason in self._skipped.get(folder, ()))
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
