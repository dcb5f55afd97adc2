"""Prepared networks on disk, so that a later process runs one without building it, nor importing what builds it.

One file each below ``<cache>/engines/``, named by backbone, spec and library versions: a line of JSON with the
digest of the rest, then the graph, then its weights. A file that is damaged, or from other libraries, is as good
as none: what it saves is only time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..core.machine import installed
from ..store.paths import safe_name
from ..store.spec import Spec, canonical_json

FORMAT = 1


class Network(NamedTuple):
    """A network as its engine saves it."""

    graph: bytes
    weights: bytes


def place(cache_dir: Path, name: str, spec: Spec, libraries: Sequence[str]) -> Path:
    """Return the file of a prepared network.

    Parameters
    ----------
    name : str
        The backbone's.
    libraries : sequence of str
        The packages that decide what the network becomes; their installed versions are part of the name.
    """
    made_by = hashlib.sha256(canonical_json([FORMAT, *map(installed, libraries)]).encode()).hexdigest()
    return Path(cache_dir) / "engines" / f"{safe_name(name)}-{spec.short}-{made_by[:8]}.network"


def read(path: Path, spec: Spec) -> Network | None:
    """Return a prepared network, or None if it is not there, damaged, or of another spec."""
    try:
        header, _, content = path.read_bytes().partition(b"\n")
        fields = json.loads(header)
        size = fields["graph_bytes"]
        sound = fields == _header(Network(content[:size], content[size:]), spec)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Network(content[:size], content[size:]) if sound else None


def write(path: Path, network: Network, spec: Spec) -> None:
    """Keep a prepared network, in place of those that other versions of the libraries made.

    Where it cannot be written it is not kept: nothing depends on it.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=".", suffix=".network", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(_header(network, spec)).encode() + b"\n")
                file.write(network.graph)
                file.write(network.weights)
            Path(fresh).replace(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
        for older in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.network"):
            if older != path:
                older.unlink(missing_ok=True)


def _header(network: Network, spec: Spec) -> dict[str, object]:
    digest = hashlib.sha256(network.graph)
    digest.update(network.weights)
    return {"format": FORMAT, "spec": spec.sha256, "graph_bytes": len(network.graph), "sha256": digest.hexdigest()}
