"""The features cache: durable, incremental, verifiable.

Names are imported when they are first used: `import pipeline.store` loads neither numpy nor h5py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import lazy_names

if TYPE_CHECKING:
    from .catalog import CacheEntry, list_caches, nearest, remove, roots, superseded, unused, verify_cache
    from .disk import hold
    from .feature_cache import FeatureCache
    from .joined_cache import JoinedCache, open_caches
    from .paths import cache_path
    from .plan import Plan
    from .row_index import Survey, survey
    from .spec import FORMAT_VERSION, Spec
    from .writer import CacheWriter

_HOMES = {
    "CacheEntry": "catalog",
    "CacheWriter": "writer",
    "FORMAT_VERSION": "spec",
    "FeatureCache": "feature_cache",
    "JoinedCache": "joined_cache",
    "Plan": "plan",
    "Spec": "spec",
    "Survey": "row_index",
    "cache_path": "paths",
    "hold": "disk",
    "list_caches": "catalog",
    "nearest": "catalog",
    "open_caches": "joined_cache",
    "remove": "catalog",
    "roots": "catalog",
    "superseded": "catalog",
    "survey": "row_index",
    "unused": "catalog",
    "verify_cache": "catalog",
}

__all__ = [
    "FORMAT_VERSION",
    "CacheEntry",
    "CacheWriter",
    "FeatureCache",
    "JoinedCache",
    "Plan",
    "Spec",
    "Survey",
    "cache_path",
    "hold",
    "list_caches",
    "nearest",
    "open_caches",
    "remove",
    "roots",
    "superseded",
    "survey",
    "unused",
    "verify_cache",
]

__getattr__ = lazy_names(__name__, _HOMES)
