"""Running a frozen backbone: uint8 pixels in, features out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import PipelineError, UnknownNameError
from .backbone import Backbone

if TYPE_CHECKING:
    import torch


class Engine:
    """A backbone made ready on one device. Safe to call from several threads at once.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``auto`` (any accelerator that torch offers, else the CPU), or a torch device such as ``cuda:1``.

    Attributes
    ----------
    device : torch.device
    dtype : numpy dtype
        Of the rows that it returns: float16 at float16 precision, else float32.
    features : int
        D, the length of a row.
    network : nn.Module
        Frozen: evaluation mode, no gradients.
    """

    def __init__(self, backbone: Backbone, device: str = "auto"):
        import torch

        from .prepare import fold_batchnorm

        self.device = choose_device(device)
        self._precision = getattr(torch, backbone.precision)
        self.dtype = np.dtype("float16" if backbone.precision == "float16" else "float32")
        network = backbone.network().requires_grad_(False)
        fold_batchnorm(network.network)
        self.network = network.to(self.device, self._precision).to(memory_format=torch.channels_last)
        transform = backbone.transform
        self._scale = torch.tensor([1 / (255 * std) for std in transform.std], device=self.device).view(3, 1, 1)
        self._shift = torch.tensor(
            [-mean / std for mean, std in zip(transform.mean, transform.std, strict=True)], device=self.device
        ).view(3, 1, 1)
        self.features = self(np.zeros((1, *transform.crop, 3), np.uint8)).shape[1]

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
        import torch

        with torch.inference_mode():
            # bytes travel to the device, not floats; the permuted view is channels-last as it stands
            batch = torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            batch = (batch * self._scale).add_(self._shift).to(self._precision)
            return self.network(batch).float().cpu().numpy().astype(self.dtype, copy=False)


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
