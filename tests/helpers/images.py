"""Small image files, and a server, for tests of data sets."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(file: Path, seed: int | None = None, kind: str = "PNG") -> Path:
    """Write an image of 8 x 6 pixels, made from the file's name or from `seed`, and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(repr(file).encode()) if seed is None else seed)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(file, kind)
    return file


def write_images(root: Path, *names: str) -> Path:
    """Write an image for each name below `root` and return `root`."""
    for name in names:
        write_image(root / name, kind="JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
    return root


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder, hidden or not, sorted."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def served(folder: Path, ranges: bool = False) -> Iterator[str]:
    """Serve a folder over HTTP on this machine, parts of files too if asked; yield its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if ranges else None
            if asked is None:
                return super().do_GET()
            content = Path(self.translate_path(self.path)).read_bytes()
            part = content[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image with detail at every scale, so that a shift by a fraction of a pixel shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8))
