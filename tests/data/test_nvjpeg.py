"""Decoding on a GPU: what it takes on, what it leaves to Pillow, and that it is a spec of its own.

Where there is no GPU torchvision's decoder on the CPU stands in for nvJPEG: the same call with another device.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.backbones import as_described, description, from_description, resolve
from pipeline.cli import main
from pipeline.core.errors import PipelineError, UnknownNameError
from pipeline.data import decode, nvjpeg
from pipeline.data.device_resize import Encoded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def photo(mode: str = "RGB", kind: str = "JPEG", **settings) -> bytes:
    buffer = BytesIO()
    Image.fromarray(load_sample_images().images[0]).crop((0, 0, 301, 200)).convert(mode).save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture(params=["_by_torchcodec", "_by_torchvision"], autouse=True)
def library(request, monkeypatch):
    """Decode by either library."""
    if request.param == "_by_torchcodec":
        pytest.importorskip("torchcodec.decoders")
    monkeypatch.setattr(nvjpeg, "_library", lambda kind: getattr(nvjpeg, request.param))


class Counting:
    """The decoder on a device, and how often it had an answer."""

    def __init__(self, device: str):
        self.device, self.answers = device, []

    def __call__(self, content, header):
        image = nvjpeg.decode(content, header, self.device)
        self.answers.append(image is not None)
        return image


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(exif=exif)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("content", [photo(), photo(quality=95, subsampling=0), photo(progressive=True), turned(6)],
                         ids=["usual", "fine", "progressive", "turned"])
def test_photos_come_out_as_pillow_decodes_them(content, device):
    decoder, expected = Counting(device), np.asarray(decode(content)).astype(int)
    found = decode(content, jpeg=decoder)
    assert decoder.answers == [True] and found.mode == "RGB"
    assert np.abs(np.asarray(found) - expected).mean() < 1  # and of the same size: a turned one is upright


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "content",
    [photo("L"), photo("CMYK"), photo(keep_rgb=True), photo() + b"more", photo(kind="PNG"), photo(kind="WEBP")],
    ids=["grey", "cmyk", "rgb components", "bytes after the end", "png", "webp"],
)
def test_other_files_are_left_to_pillow(content, device):
    decoder = Counting(device)
    assert (np.asarray(decode(content, jpeg=decoder)) == np.asarray(decode(content))).all()
    assert not any(decoder.answers)


def test_a_damaged_file_is_refused_as_ever():
    with pytest.raises(PipelineError, match="truncated"):
        decode(photo()[:3000], jpeg=functools.partial(nvjpeg.decode, device="cpu"))


def test_memory_that_runs_out_never_makes_an_image_unreadable(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(nvjpeg, "_decoded", full)
    with pytest.raises(PipelineError, match=r"301 x 200.*--batch-size") as caught:
        decode(photo(), jpeg=nvjpeg.decode)
    assert type(caught.value) is PipelineError  # not UnreadableImageError, which would be kept as a reason


def test_it_is_part_of_the_spec_and_kept_with_the_run(tmp_path):
    plain, fast = resolve(), resolve(decoder="nvjpeg")
    assert [field for field, _, _ in fast.spec.differences(plain.spec)] == ["decode.jpeg"]
    assert "nvjpeg" in fast.label
    for again in (from_description(description(fast), tmp_path), as_described(description(fast), tmp_path)):
        assert (again.spec, again.decoder) == (fast.spec, "nvjpeg")
    older = {name: value for name, value in description(plain).items() if name != "decoder"}
    assert from_description(older, tmp_path).decoder == "pillow"


def test_wrong_decoders_are_told():
    with pytest.raises(UnknownNameError, match="Did you mean 'nvjpeg'"):
        resolve(decoder="nvjpg")
    with pytest.raises(PipelineError, match="not both"):
        resolve(decoder="nvjpeg", fast_decode=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line_and_nothing_is_kept(tmp_path, capsys):
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        (tmp_path / "photos" / label / "1.jpg").write_bytes(photo(quality=80 + ord(label) % 7))
    asked = ["extract", "--data", str(tmp_path / "photos"), "--cache-dir", str(tmp_path / "cache")]
    assert main([*asked, "--decoder", "nvjpeg"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: --decoder nvjpeg takes an NVIDIA GPU") and "Leave --decoder out" in told[-1]
    assert not list(tmp_path.rglob("*.h5"))


def test_torchcodec_is_taken_where_it_can_and_torchvision_else(monkeypatch, library):
    monkeypatch.undo()
    find = nvjpeg._library.__wrapped__
    if importlib.util.find_spec("torchcodec"):
        assert find("cpu") is nvjpeg._by_torchcodec
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert find("cpu") is nvjpeg._by_torchvision


@pytest.mark.parametrize("orientation", range(1, 9))
def test_batches_come_out_as_pillow_turns_them(orientation):
    content = turned(orientation)
    file = Encoded(content, orientation, None, lambda: None)
    found = nvjpeg.decode_batch([file, file], torch.device("cpu"))
    expected = np.asarray(decode(content)).astype(int)
    assert all(np.abs(image.numpy().astype(int) - expected).mean() < 1 for image in found)
