"""What often lies where another file was meant, told by its first bytes."""

from __future__ import annotations

START = 64  # bytes that tell
_STAND_INS = (
    ((b"version https://git-lfs",), "a pointer of Git LFS, not the file itself, which `git lfs pull` fetches"),
    ((b"<!doctype html", b"<html"), "a web page, not the file: a download that went wrong"),
    ((b'{"error', b'{"message', b"<error>"), "an error message of a server, not the file"),
)


def stand_in(start: bytes) -> str:
    """Return what a file is that begins so, if it only stands in another's place; empty where it does not."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<?xml"):
        text = text.partition(b"?>")[2].lstrip()
    return next((what for beginnings, what in _STAND_INS if text.startswith(beginnings)), "")
