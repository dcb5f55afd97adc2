"""Recording what some work launches on an NVIDIA GPU, to launch all of it again in one call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Work = Callable[[], None]


def record(work: Work, device: torch.device, warm: int = 1) -> Work:
    """Record some work as a CUDA graph.

    Parameters
    ----------
    work : callable
        Reads and writes tensors that stay where they are.
    device : torch.device
    warm : int
        Times that it is done before, while libraries set up what is not to be recorded.

    Returns
    -------
    callable
        Does what was recorded.

    Raises
    ------
    RuntimeError
        If the work does what cannot be recorded; this thread is then as it was before.
    """
    import torch

    with torch.cuda.device(device):
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        # torch's own stream for recordings belongs to the GPU that recorded first, whichever that was
        aside = torch.cuda.Stream(device)
        aside.wait_stream(before)
        try:
            with torch.cuda.stream(aside):
                for _ in range(warm):
                    work()
            before.wait_stream(aside)
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                work()
        except BaseException:
            torch.cuda.set_stream(before)  # which torch leaves out where the recording's own end fails
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            with suppress(RuntimeError, AttributeError):  # some versions take it for recorded from then on
                generator.graphsafe_set_state(generator.clone_state())
            raise
    return graph.replay
