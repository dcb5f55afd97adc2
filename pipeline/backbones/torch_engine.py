"""Running a frozen backbone with torch, on the CPU or on an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PipelineError, UnknownNameError
from .allocator import keep_freed_memory
from .backbone import Backbone
from .batches import CPU_BATCH, MOST, USUAL, FittingBatches, filled

if TYPE_CHECKING:
    import torch


class TorchEngine:
    """A backbone made ready on one device. Safe to call from several threads at once.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``auto`` (any accelerator that torch offers, else the CPU), or a torch device such as ``cuda:1``.
    batch_size : int, optional
        Images a forward pass; default what suits the device.
    owned : bool, optional
        Whether one thread alone runs the network, in batches of one size that are filled up; default on accelerators.
        cuDNN keeps its plans by thread and by size of batch: in every worker they would be made anew, in seconds.

    Attributes
    ----------
    device : torch.device
    dtype : numpy dtype
        Of the rows that it returns: float16 at float16 precision, else float32.
    features : int
        D, the length of a row.
    batch_size : int
        Images a forward pass that suit the device.
    network : nn.Module
        Frozen: evaluation mode, no gradients.
    notes : list of str
        Remarks for the user.
    """

    name = "torch"

    def __init__(
        self, backbone: Backbone, device: str = "auto", batch_size: int | None = None, owned: bool | None = None
    ):  # fmt: skip
        import torch

        from .prepare import PreparedNetwork

        self.device = choose_device(device)
        self.on_cpu = self.device.type == "cpu"
        if backbone.precision == "tf32" and self.device.type != "cuda":
            raise PipelineError(f"tf32 is arithmetic of NVIDIA's GPUs; {self.device.type!r} has none. Use --precision "
                                "float32 or bfloat16.")
        if self.on_cpu:
            keep_freed_memory()
        elif backbone.precision in ("float32", "tf32"):
            # torch's default for convolutions is 10 bits of mantissa, which is not what float32 says
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = backbone.precision == "tf32"
        self.dtype = np.dtype("float16" if backbone.precision == "float16" else "float32")
        kind = torch.float32 if backbone.precision == "tf32" else getattr(torch, backbone.precision)
        self.notes: list[str] = []
        owned = not self.on_cpu if owned is None else owned
        self._owner = ThreadPoolExecutor(1, "owner") if owned else None
        self._fitting = FittingBatches(self._forward, self.notes)
        self._crop = backbone.transform.crop
        usual = {"cuda": MOST, "cpu": CPU_BATCH}.get(self.device.type, USUAL)
        self.batch_size, self._asked = batch_size or usual, batch_size is not None
        with one_thread():
            self.network: Any = PreparedNetwork(backbone, kind).to(self.device)
            if self._owner:
                self._owner.submit(self._warm_up).result()
            else:
                self._prepare()
                self.features = self(np.zeros((1, *self._crop, 3), np.uint8)).shape[1]

    def _warm_up(self) -> None:
        """Prepare the network in the thread that will run it, and find the batch that fits."""
        self._prepare()
        self.features = self._fitting(np.zeros((self.batch_size, *self._crop, 3), np.uint8)).shape[1]
        self.batch_size = self._fitting.most or self.batch_size
        if not self._asked:
            self.notes.clear()  # nobody asked for the batch that was too large

    def _prepare(self) -> None:
        """Make `network` faster still."""
        from .fuse import fuse

        if self.on_cpu:
            fuse(self.network, self._crop)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (N, H, W, 3)
            What the backbone's transform returns, stacked.

        Returns
        -------
        ndarray of `dtype`, shape (N, D)
        """
        if self._owner is None:
            return self._forward(pixels)
        size = self.batch_size
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        waiting = [self._owner.submit(self._fitting, filled(part, size)) for part in parts]
        return np.concatenate([each.result()[: len(part)] for part, each in zip(parts, waiting, strict=True)])

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                batch = batch.pin_memory()  # from there the copy needs no processor, and others go on meanwhile
            rows = self.network(batch.to(self.device, non_blocking=True))
            return rows.cpu().numpy().astype(self.dtype, copy=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what prepares a network on one thread: others decode meanwhile, and threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is torch's accelerator where there is one, else the CPU.

    Raises
    ------
    UnknownNameError, PipelineError
        If torch knows no such device, or this machine has none.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnknownNameError("device", name, ("auto", "cpu", "cuda", "cuda:0", "mps", "xpu")) from error
    try:
        torch.empty(1, device=device)
    except Exception as error:  # AssertionError, RuntimeError or NotImplementedError, by the backend
        raise PipelineError(f"The device {name!r} is not available on this machine: {str(error).splitlines()[0]}"
                            " Use --device auto or --device cpu.") from error
    return device


def devices(name: str) -> list[str]:
    """Return the devices that a name stands for: ``auto`` and ``cuda`` for all GPUs, any other for itself."""
    import torch

    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None and torch.cuda.device_count() > 1:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [name]
