"""Heads on disk: damage is noticed, hostile files are refused and leave no trace, loading runs nobody's code."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load, save

from pipeline.core.errors import RunError
from pipeline.heads import HEADS, load_head, make_head, save_head
from pipeline.heads.saving import ARRAYS_FILE, JSON_FILE


def save_small(folder, name, **settings):
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    X = (rng.normal(size=(3, 4))[y] * 3 + rng.normal(size=(30, 4))).astype(np.float32)
    save_head(make_head(name, **settings).fit(X, np.array(["a", "b", "c"])[y]), folder, {"spec_sha256": "5e"})
    return folder


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a tiny saved head."""
    return save_small(tmp_path / "run", "nearest-centroid")


def rewrite(folder, change=lambda description: None, arrays=None):
    """Change a saved head and mend its digests, as somebody hostile would."""
    if arrays is not None:
        (folder / ARRAYS_FILE).write_bytes(arrays if isinstance(arrays, bytes) else save(arrays))
    description = json.loads((folder / JSON_FILE).read_text())
    description.pop("sha256")
    description["arrays_sha256"] = hashlib.sha256((folder / ARRAYS_FILE).read_bytes()).hexdigest()
    change(description)
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    description["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / JSON_FILE).write_text(json.dumps(description))


def test_every_flipped_bit_of_the_arrays_is_noticed(saved):
    whole = (saved / ARRAYS_FILE).read_bytes()
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        (saved / ARRAYS_FILE).write_bytes(broken)
        with pytest.raises(RunError, match="damaged"):
            load_head(saved)


def test_every_flipped_bit_of_the_description_is_noticed_or_changes_nothing(saved):
    good, metadata = load_head(saved)
    whole = (saved / JSON_FILE).read_bytes()
    harmless = 0
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        (saved / JSON_FILE).write_bytes(broken)
        try:
            head, found = load_head(saved)
        except RunError:
            continue
        harmless += 1  # white space turned into other white space
        assert (vars(head).keys(), found) == (vars(good).keys(), metadata)
    assert harmless < len(whole) / 50


def test_every_truncation_is_noticed(saved):
    for name in (ARRAYS_FILE, JSON_FILE):
        whole = (saved / name).read_bytes()
        for length in range(0, len(whole), 7):
            (saved / name).write_bytes(whole[:length])
            with pytest.raises(RunError):
                load_head(saved)
        (saved / name).write_bytes(whole)


@pytest.mark.parametrize("name", [ARRAYS_FILE, JSON_FILE])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        load_head(saved)


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def evil_skops(trace):
    """Return a skops archive that calls os.mkdir when it is loaded with trust."""
    schema = {
        "__class__": "mkdir", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1,
        "content": {"module_path": "os", "function": "mkdir"}, "protocol": 1,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
        archive.writestr("payload", str(trace))
    return buffer.getvalue()


def zip_bomb(trace):
    """Return an archive of 100 KB that unpacks to 100 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * 100_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [lambda trace: pickle.dumps(Evil(trace)), evil_skops, zip_bomb],
                         ids=["pickle", "skops", "zip bomb"])
@pytest.mark.parametrize("name", [ARRAYS_FILE, JSON_FILE])
def test_hostile_content_is_refused_and_leaves_no_trace(saved, tmp_path, make, name):
    content = make(tmp_path / "trace")
    if name == ARRAYS_FILE:
        rewrite(saved, arrays=content)
    else:
        (saved / name).write_bytes(content)
    before = sorted(saved.iterdir())
    with pytest.raises(RunError):
        load_head(saved)
    assert not (tmp_path / "trace").exists()
    assert sorted(saved.iterdir()) == before


def test_pickle_would_have_left_a_trace(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.update(format=99), "format 99"),
    (lambda d: d.update(head="os.system"), "Unknown head"),
    (lambda d: d["settings"].update(depth=3), "depth"),
    (lambda d: d["values"].update(__class__=3), "no attribute"),
    (lambda d: d["values"].update(predict_proba_=3, classes_=[]), "usable head"),
    (lambda d: d["values"].update(fit=3), "no attribute"),
    (lambda d: d["values"].update(n_features_in_=9), "usable head"),
    (lambda d: d["values"].update(n_features_in_=10**15), "usable head"),
    (lambda d: d["values"].pop("temperature_"), "usable head"),
    (lambda d: d["values"]["scaler_"]["plain"].update(kind="magic"), "magic"),
    (lambda d: d["values"]["scaler_"].update(record="system"), "usable head"),
    (lambda d: d.pop("metadata"), "usable head"),
    (lambda d: d.update(values=[]), "usable head"),
])
def test_description_of_something_else_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(RunError, match=message):
        load_head(saved)


def test_deeply_nested_description_is_refused(saved):
    (saved / JSON_FILE).write_text("[" * 1_000_000)
    with pytest.raises(RunError, match="damaged"):
        load_head(saved)


def test_huge_description_is_refused_before_it_is_read(saved):
    with (saved / JSON_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="bytes"):
        load_head(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", [ARRAYS_FILE, JSON_FILE])
def test_named_pipe_does_not_block(saved, name):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(RunError, match="no regular file"):
        load_head(saved)


def test_arrays_of_other_shapes_are_refused(saved):
    arrays = load((saved / ARRAYS_FILE).read_bytes())
    rewrite(saved, arrays=arrays | {"coef_": arrays["coef_"][:, :2].copy()})
    with pytest.raises(RunError, match="usable head"):
        load_head(saved)


def test_safetensors_header_that_claims_too_much_is_refused(saved):
    header = json.dumps({"coef_": {"dtype": "F64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}).encode()
    rewrite(saved, arrays=len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError, match="usable head"):
        load_head(saved)


@pytest.mark.parametrize("name", ["random-forest", "hist-gradient-boosting"])
def test_trees_on_which_a_walk_would_never_end_are_refused(tmp_path, name):
    folder = save_small(tmp_path, name, **{"random-forest": {"n_estimators": 2}}.get(name, {"max_iter": 2}))
    arrays = load((folder / ARRAYS_FILE).read_bytes())
    looped = arrays["left_"].copy()
    looped[np.flatnonzero(looped >= 0)[0]] = 0
    rewrite(folder, arrays=arrays | {"left_": looped})
    with pytest.raises(RunError, match="damaged"):
        load_head(folder)


@pytest.mark.parametrize("name", HEADS)
def test_loading_and_predicting_import_neither_scikit_learn_nor_torch_nor_skops(tmp_path, name):
    save_small(tmp_path, name, **({"epochs": 1} if HEADS[name].needs_torch else {}))
    code = (
        "import sys, numpy; from pipeline.heads import load_head\n"
        f"load_head({str(tmp_path)!r})[0].predict(numpy.zeros((2, 4)))\n"
        "print({'torch', 'skops', 'torchvision', 'timm', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_small(tmp_path / "file", "nearest-centroid")


def test_failed_write_leaves_the_old_head_usable(saved, monkeypatch):
    good, _ = load_head(saved)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        save_small(saved, "ridge")
    monkeypatch.undo()
    head, _ = load_head(saved)
    np.testing.assert_array_equal(head.coef_, good.coef_)
    assert len(list(saved.iterdir())) == 2
