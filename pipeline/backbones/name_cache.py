"""What a backbone's name meant, kept beside the caches: asking torchvision or timm costs seconds of imports.

Only what was found is kept, never the weights. Other weights in a file or other versions of the libraries make
another question; when the network is to be built after all, everything is looked up and compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError
from ..core.machine import installed
from ..store.paths import safe_name
from ..store.spec import canonical_json
from .backbone import Backbone, as_described, description, resolve
from .bundled import BUNDLED
from .state_dicts import split_part
from .weights import Weights

LIBRARIES = ("image-feature-pipeline", "torch", "torchvision", "timm")


def resolve_again(name: str, weights: str | Path | None = None, *rest: Any, cache_dir: Path | None) -> Backbone:
    """Find a backbone as `resolve` does, from memory where the very same was asked before.

    Parameters
    ----------
    name, weights, *rest
        As for `resolve`.
    cache_dir : Path or None
        Where to remember; None to ask afresh.
    """
    if cache_dir is None or name in BUNDLED:  # these tell without any import
        return resolve(name, weights, *rest)
    # a file is known by its content: it may have been replaced since
    known = weights is not None and split_part(weights)[0].is_file()
    content = Weights.from_file(weights).digest if weights is not None and known else None
    question = canonical_json([name, None if weights is None else str(weights), content, rest,
                               [installed(library) for library in LIBRARIES]])
    stem = f"{safe_name(name)}-{hashlib.sha256(question.encode()).hexdigest()[:12]}"
    return _remembered(Path(cache_dir) / "engines" / f"{stem}.json", question, lambda: resolve(name, weights, *rest))


def _remembered(path: Path, question: str, ask: Callable[[], Backbone]) -> Backbone:
    try:
        known = json.loads(path.read_text())
        if known["seal"] == _seal(question, known["answer"]):
            return as_described(known["answer"], path.parent)
    except (OSError, ValueError, KeyError, TypeError, PipelineError):
        pass
    backbone = ask()
    answer = {**description(backbone), "tags": list(backbone.architecture.tags)}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seal": _seal(question, answer), "answer": answer}))
    return backbone


def _seal(question: str, answer: dict[str, Any]) -> str:
    """Tie an answer to its question, so that neither damage nor a collision of names gives a wrong one."""
    return hashlib.sha256(f"{question}\n{canonical_json(answer)}".encode()).hexdigest()
