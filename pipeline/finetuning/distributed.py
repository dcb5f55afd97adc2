"""Several processes training one network together, as `torchrun` starts them; one process is the plain case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from ..core.errors import PipelineError

PATIENCE = timedelta(minutes=30)  # how long a process waits for the others before it gives up
LOOK_EVERY = 50  # steps between questions to all, on accelerators, where each answer is waited for


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Attributes
    ----------
    rank : int
        0 writes and reports.
    size : int
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device, step: int = 0) -> bool:
        """Tell whether the flag is set in any process; on an accelerator, only asked every so many steps."""
        if self.size == 1:
            return flag
        asked = device.type == "cpu" or step % LOOK_EVERY == 0
        return asked and bool(self.total(torch.tensor(float(flag), device=device)))

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all processes the first one's values."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with gradients averaged over all processes."""
        if self.size == 1:
            return network
        places = None if device.type == "cpu" else [torch.accelerator.current_device_index()]
        # buffers are not copied from rank 0: BatchNorm computes the same on all (frozen, or synchronised)
        return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)

    def synchronise_norms(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with BatchNorm over the whole batch, not each process's part of it.

        Raises
        ------
        PipelineError
            On a CPU, where torch cannot.
        """
        norms = {type(module) for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        if self.size == 1 or not norms:
            return network
        if device.type == "cpu":
            raise PipelineError(
                "BatchNorm cannot be synchronised between processes on a CPU, so each would see other statistics. "
                "Pass --freeze-norm, or train in one process."
            )
        if norms <= {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
            return nn.SyncBatchNorm.convert_sync_batchnorm(network)
        from timm.layers import convert_sync_batchnorm  # timm's norms have an activation inside, which torch's drops

        return convert_sync_batchnorm(network)


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that `torchrun` started, if it did; each takes the accelerator of its local rank.

    Raises
    ------
    PipelineError
        If another process dies or hangs; the message names the rank that noticed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield World()
        return
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(distributed.get_default_backend_for_device(device), timeout=PATIENCE)
    rank = distributed.get_rank()
    try:
        yield World(rank, distributed.get_world_size())
    except (distributed.DistBackendError, distributed.DistNetworkError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not _lost_peer(error):
            raise
        raise PipelineError(f"Process {rank} lost contact with another one, which has died or hangs. Start all of "
                            "them again with --resume.") from error
    finally:
        distributed.destroy_process_group()


def _lost_peer(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("connection", "peer", "timed out", "timeout", "socket", "nccl", "gloo"))
