"""Decoding JPEG files on an NVIDIA GPU: for trusted files, because the decoder is not made for hostile ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, JpegImagePlugin

from ..core.errors import PipelineError
from .jpeg import JpegHeader, turns

if TYPE_CHECKING:
    import torch

    from .device_resize import Encoded

# TorchCodec's decoder is torchvision's, moved there: which of them it was makes no other pixels
RULE = "whole JPEG files of YCbCr by nvJPEG, through torchvision; all others by Pillow"
_own = threading.local()


def require() -> None:
    """Make sure that this machine decodes with nvJPEG.

    Raises
    ------
    PipelineError
        If there is no CUDA device, or torchvision was built without nvJPEG, and so was TorchCodec.
    """
    import torch

    if not torch.cuda.is_available():
        raise PipelineError("--decoder nvjpeg takes an NVIDIA GPU and a torch built for CUDA, and torch finds none "
                            "here. Leave --decoder out, or extract on a machine that has one.")
    try:
        _decoded(_sample(), "cuda")
    except RuntimeError as error:
        raise PipelineError("Neither TorchCodec nor torchvision decodes with nvJPEG here: "
                            f"{str(error).splitlines()[0]} Leave --decoder out.") from error


def decode(content: bytes, header: JpegImagePlugin.JpegImageFile, device: str = "cuda") -> Image.Image | None:
    """Return the image of a JPEG file in RGB, not turned yet; None where Pillow is to decode it.

    Parameters
    ----------
    content : bytes
        The whole file.
    header : JpegImageFile
        The same, opened by Pillow and not loaded.
    device : str
        ``cuda``; on ``cpu`` libjpeg decodes.

    Raises
    ------
    PipelineError
        If the device has no room for the image.
    """
    import torch

    if not (_is_ycbcr(header) and content.endswith(b"\xff\xd9")):
        return None
    try:
        pixels = _decoded(content, device)
    except torch.OutOfMemoryError as error:
        raise PipelineError(f"The GPU's memory has no room to decode an image of {header.width} x {header.height}. "
                            "Give a smaller --batch-size, or leave --decoder out.") from error
    except RuntimeError:
        return None
    if pixels.shape != (header.height, header.width, 3):
        return None
    image = Image.fromarray(pixels)
    image.info = header.info  # which holds the orientation
    return image


class UndecodableError(Exception):
    """The device could not decode a batch of files; which one is to be found out one by one."""


def suits(content: bytes, header: JpegHeader) -> bool:
    """Tell whether a file is one that the device decodes: whole, of three components, not progressive."""
    return not header.grey and not header.progressive and content.endswith(b"\xff\xd9")


def decode_batch(files: Sequence[Encoded], device: torch.device) -> list[torch.Tensor]:
    """Return the images of JPEG files, (H, W, 3) uint8 on the device, upright.

    Raises
    ------
    UndecodableError
        If any could not be decoded.
    """
    import torch

    try:
        images = _library(device.type)([file.content for file in files], device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UndecodableError from error
    return [_turned(image.permute(1, 2, 0), file.orientation) for image, file in zip(images, files, strict=True)]


def _turned(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """Return an image upright, as `jpeg.turned` does."""
    exchanged, reversed_ = turns(orientation)
    image = image.transpose(0, 1) if exchanged else image
    return image.flip(reversed_) if reversed_ else image  # which would copy it


def _is_ycbcr(header: JpegImagePlugin.JpegImageFile) -> bool:
    """Tell whether a file has three components of which everybody knows the colour space."""
    components = [component[0] for component in header.layer]
    return header.mode == "RGB" and components == [1, 2, 3] and header.info.get("adobe_transform", 1) == 1


def _decoded(content: bytes, device: str) -> np.ndarray:
    """Return (H, W, 3) pixels; nothing else that the device does is waited for."""
    import torch

    decode_files = _library(torch.device(device).type)
    if device == "cpu":
        return decode_files([content], device)[0].permute(1, 2, 0).contiguous().numpy()
    if not hasattr(_own, "stream"):
        _own.stream = torch.cuda.Stream()
    with torch.cuda.stream(_own.stream):
        return decode_files([content], device)[0].permute(1, 2, 0).contiguous().cpu().numpy()


Library = Callable[[Sequence[bytes], Any], "list[torch.Tensor]"]


@cache
def _library(kind: str) -> Library:
    """Return what decodes files, none of them turned, to (3, H, W) on a kind of device.

    TorchCodec's decoder where it is installed and can, else torchvision's, which is deprecated since 0.29.
    """
    try:
        _by_torchcodec([_sample()], kind)
    except (ImportError, RuntimeError, OSError):
        return _by_torchvision
    return _by_torchcodec


def _by_torchcodec(contents: Sequence[bytes], device: Any) -> list[torch.Tensor]:
    from torchcodec.decoders import decode_jpeg

    return list(decode_jpeg([_without_exif(content) for content in contents], mode="RGB", device=device))


def _by_torchvision(contents: Sequence[bytes], device: Any) -> list[torch.Tensor]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    if torch.device(device).type == "cpu":
        return [decode_jpeg(each, ImageReadMode.RGB) for each in data]
    return decode_jpeg(data, ImageReadMode.RGB, device=device)


def _without_exif(content: bytes) -> bytes:
    """Return a JPEG file without what says how it is to be turned: TorchCodec would do that by itself."""
    place, kept = 2, [content[:2]]
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content) and content[place + 1] != 0xDA:
        end = place + 2 + max(2, int.from_bytes(content[place + 2 : place + 4]))
        if content[place + 1] != 0xE1:
            kept.append(content[place:end])
        place = end
    return b"".join((*kept, content[place:]))


def _sample() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    return buffer.getvalue()
