"""Heads on disk: numbers in `head.safetensors`, everything else in `head.json`. Nothing is ever unpickled.

Every head is made of arrays and plain values, so no file can name code to run, nothing is compressed (no file
unpacks to more than its size), and a later version of scikit-learn or torch reads today's heads. `head.json` holds
the SHA-256 of both files: damage is noticed, where safetensors alone would load flipped bytes silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import PipelineError, RunError
from .out_of_distribution import OutOfDistribution
from .scaling import Scaler

if TYPE_CHECKING:
    from .base import Head

FORMAT = 1
JSON_FILE, ARRAYS_FILE, ESTIMATOR_FILE = "head.json", "head.safetensors", "head.skops"
OWN, APART = "estimator", ("estimator", "estimator_")  # what a program gave is in a file of its own
MOST_JSON = 64 << 20  # bytes; the largest sensible one, of 1,000 classes and 1,000 epochs, is below 1 MB
MOST_FEATURES = 1 << 24
# attributes that are more than one array, by their names in files
RECORDS: dict[str, Any] = {"Scaler": Scaler, "Familiarity": OutOfDistribution}
NAME = re.compile(r"[a-z][a-z0-9_]*_")  # of a fitted attribute


def save_head(head: Head, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> list[str]:
    """Write a fitted head into a folder.

    Parameters
    ----------
    head : Head
        Fitted, of a class in `HEADS`.
    folder : path
        Made if missing. A head already there is replaced.
    metadata : dict, optional
        Anything JSON can hold, given back by `load_head`: class names, the features' spec, …

    Returns
    -------
    list of str
        The names of the files written.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}.") from error
    own = _packed(head)
    arrays, values = _split(head)
    content = save(arrays)
    description = {
        "format": FORMAT,
        "head": OWN if own else _registered_name(head),
        "settings": {name: _to_json(value) for name, value in head.get_params(deep=False).items() if name not in APART},
        "values": values,
        "arrays_sha256": hashlib.sha256(content).hexdigest(),
        **({"estimator_sha256": hashlib.sha256(own).hexdigest()} if own else {}),
        "metadata": metadata or {},
    }
    description["sha256"] = _digest(description)
    _write(folder / ARRAYS_FILE, content)
    if own:
        _write(folder / ESTIMATOR_FILE, own)
    _write(folder / JSON_FILE, json.dumps(description, indent=1, ensure_ascii=False).encode())
    return [ARRAYS_FILE, *([ESTIMATOR_FILE] if own else []), JSON_FILE]


def _packed(head: Head) -> bytes:
    """Return the estimator that a head is made of, if it is one; empty of all other heads."""
    if not hasattr(head, "estimator_"):
        return b""
    from .estimator import packed

    return packed(head.estimator_)


def load_head(folder: str | os.PathLike[str]) -> tuple[Head, dict[str, Any]]:
    """Read a head that `save_head` wrote.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Head, dict
        The fitted head and the metadata saved with it.

    Raises
    ------
    RunError
        If a file is missing, damaged, of another format, or does not describe a head completely.
    """
    folder = Path(folder)
    description = _description(folder / JSON_FILE)
    content = _read(folder / ARRAYS_FILE)
    if hashlib.sha256(content).hexdigest() != description.get("arrays_sha256"):
        raise RunError(f"{folder / ARRAYS_FILE} is damaged: its SHA-256 is not the one in {JSON_FILE}. Train again.")
    own = b""
    if description.get("head") == OWN:
        own = _read(folder / ESTIMATOR_FILE)
        if hashlib.sha256(own).hexdigest() != description.get("estimator_sha256"):
            raise RunError(f"{folder / ESTIMATOR_FILE} is damaged: its SHA-256 is not the one in {JSON_FILE}. Train "
                           "again.")
    try:
        return _assembled(description, content, own), description["metadata"]
    except PipelineError as error:
        raise RunError(f"{folder} holds no usable head: {error}") from error
    except Exception as error:
        raise RunError(f"{folder} holds no usable head: {type(error).__name__}: {error}") from error


def _split(head: Head) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a head's fitted attributes: arrays of numbers by name, and the rest as JSON values."""
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, Any] = {}
    for name, value in vars(head).items():
        if not NAME.fullmatch(name) or name in APART:
            continue
        if type(value) in RECORDS.values():
            parts = {field.name: getattr(value, field.name) for field in fields(value)}
            arrays |= {f"{name}.{part}": np.ascontiguousarray(own) for part, own in parts.items()
                       if isinstance(own, np.ndarray)}
            plain = {part: own for part, own in parts.items() if not isinstance(own, np.ndarray)}
            record = next(known for known, kind in RECORDS.items() if kind is type(value))
            values[name] = {"record": record, "plain": plain}
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            arrays[name] = np.ascontiguousarray(value)
        else:
            values[name] = _to_json(value)
    return arrays, values


def _assembled(description: dict[str, Any], content: bytes, own: bytes) -> Head:
    from safetensors.numpy import load

    from .registry import HEADS

    settings = {name: _from_json(value) for name, value in description["settings"].items()}
    head = _own(settings, own) if own else HEADS[description["head"]].build(**settings)
    arrays = load(content)
    for name, value in description["values"].items():
        is_record = isinstance(value, dict) and "record" in value
        _set(head, name, _record(name, value, arrays) if is_record else _from_json(value))
    for name, array in arrays.items():
        if "." not in name:
            _set(head, name, array)
    _try_out(head)
    return head


def _own(settings: dict[str, Any], content: bytes) -> Head:
    from .estimator import EstimatorHead, unpacked

    estimator = unpacked(content)
    head = EstimatorHead(estimator, **settings)
    head.estimator_ = estimator
    return head


def _set(head: Any, name: str, value: Any) -> None:
    if not NAME.fullmatch(name) or hasattr(type(head), name):
        raise RunError(f"{name!r} is no attribute of a fitted {type(head).__name__}.")
    setattr(head, name, value)


def _record(name: str, value: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    parts = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
    return RECORDS[value["record"]](**parts, **value["plain"])


def _try_out(head: Head) -> None:
    """Predict one row, so that a head whose arrays do not fit together is refused here and not later."""
    if not 0 < head.n_features_in_ <= MOST_FEATURES:
        raise RunError(f"{head.n_features_in_} features a row are none or too many.")
    row = np.zeros((1, head.n_features_in_), np.float32)
    found = head.predict_proba(row)
    if found.shape != (1, len(head.classes_)) or not np.isfinite(found).all():
        raise RunError(f"a trial prediction gave {found.shape} values for {len(head.classes_)} classes.")
    threshold, familiarity = (vars(head).get(name) for name in ("set_threshold_", "familiarity_"))
    if threshold is not None and not 0 <= threshold <= 1:
        raise RunError(f"labels are possible from a probability of {threshold} on, which is none.")
    if familiarity is not None and familiarity.unlike(row).shape != (1,):
        raise RunError("a trial row cannot be compared with its training rows.")


def _registered_name(head: Head) -> str:
    from .registry import HEADS

    target = f"{type(head).__module__.rpartition('.')[2]}:{type(head).__name__}"
    for entry in HEADS.values():
        if entry.target == target:
            return entry.name
    raise RunError(f"{type(head).__name__} is not in the table of heads, so it could not be loaded again.")


def _to_json(value: Any) -> Any:
    """Return `value` as JSON; a dictionary or an array of strings in a wrapper that `_from_json` undoes."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"strings": value.tolist(), "object": value.dtype == object}
    if isinstance(value, dict):
        return {"pairs": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "strings" in value:
        return np.array(value["strings"], dtype=object if value["object"] else np.str_)
    return {key: _from_json(item) for key, item in value["pairs"]}


def _description(path: Path) -> dict[str, Any]:
    content = _read(path, MOST_JSON)
    try:
        description = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: it is no JSON ({error}). Train again.") from error
    if not isinstance(description, dict) or "format" not in description:
        raise RunError(f"{path} describes no head.")
    if description["format"] != FORMAT:
        raise RunError(f"{path} has format {description['format']!r}, but this version reads format {FORMAT}.")
    stated = description.pop("sha256", None)
    if stated != _digest(description):
        raise RunError(f"{path} is damaged: its content does not have the SHA-256 stated in it. Train again.")
    return description


def _digest(description: dict[str, Any]) -> str:
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read(path: Path, most: int | None = None) -> bytes:
    """Return a regular file's content; a pipe or device would block for ever."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"{path} is no regular file.")
        if most is not None and status.st_size > most:
            raise RunError(f"{path} has {status.st_size:,} bytes; more than {most:,} is no head's description.")
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror}.") from error
