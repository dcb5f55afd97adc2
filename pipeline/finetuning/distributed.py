"""Several processes training one network together, as `torchrun` starts them; one process is the plain case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from ..errors import PipelineError

PATIENCE = timedelta(minutes=10)  # how long a process waits for the others before it gives up


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

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=device)))

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with gradients averaged over all processes."""
        if self.size == 1:
            return network
        places = [device.index or 0] if device.type != "cpu" else None
        # buffers are not copied from rank 0: BatchNorm computes the same on all (frozen, or synchronised)
        return nn.parallel.DistributedDataParallel(network, device_ids=places, broadcast_buffers=False)

    def synchronise_norms(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network with BatchNorm over the whole batch, not each process's part of it.

        Raises
        ------
        PipelineError
            On a CPU, where torch cannot.
        """
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
        if self.size == 1 or not norms:
            return network
        if device.type == "cpu":
            raise PipelineError(
                "BatchNorm cannot be synchronised between processes on a CPU, so each would see other statistics. "
                "Pass --freeze-norm, or train in one process."
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)


@contextmanager
def world(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started, if it did.

    Raises
    ------
    PipelineError
        If another process dies or hangs; the message names the rank that noticed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield World()
        return
    backend, accelerator = "gloo", torch.accelerator.current_accelerator()
    if accelerator is not None and device != "cpu":
        backend = distributed.get_default_backend_for_device(accelerator)
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(backend, timeout=PATIENCE)
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
