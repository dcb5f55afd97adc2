"""A step's forward and backward pass recorded once and replayed in one call, as a CUDA graph.

A step of a few images is hundreds of kernels of some microseconds each; to launch them from Python takes ten times as
long as to run them. What is replayed is proven on the spot: twice it is run beside the usual way, the second time with
weights that have changed since the recording, and it is used only if the gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..core.errors import one_line
from ..engines.cuda_graphs import Work

MOST_IMAGES = 64  # a step; with more the device has enough to do, and a recording would only take memory
WARM = 3  # runs before recording, in which libraries set up what must not be recorded
APART = 0.02  # of their length, how far gradients may be apart: the order of sums is not always the same
PROOFS = 2

Recorder = Callable[[Work], Work]
"""From some work to what does it again, see `pipeline.engines.cuda_graphs.record`."""


class Recording:
    """The gradients of one size of batch, computed by replaying.

    Parameters
    ----------
    model : nn.Module
    work : callable
        Given the inputs, computes gradients anew and returns tensors of results.
    inputs : tuple of tensors
        Of the kind and shape that all calls will have.
    record : Recorder

    Attributes
    ----------
    proofs : int
        How often it was seen to do what the usual way does.
    """

    def __init__(self, model: nn.Module, work: Callable[..., tuple[torch.Tensor, ...]],
                 inputs: tuple[torch.Tensor, ...], record: Recorder):
        self._inputs = tuple(each.detach().clone(memory_format=torch.preserve_format) for each in inputs)
        self._results: tuple[torch.Tensor, ...] = ()
        self.proofs = 0

        def once() -> None:
            self._results = work(*self._inputs)

        self._replay = record(once)
        self._gradients = _gradients(model)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute gradients and return the results; both are overwritten by the next call."""
        for own, each in zip(self._inputs, inputs, strict=True):
            own.copy_(each)
        self._replay()
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        return self._results


class Recordings:
    """Records steps of full batches, proves the recording, and replays it from then on.

    There is one recording at a time: what is made of other operations, or of fewer images, comes seldom.

    Parameters
    ----------
    model : nn.Module
    full : int
        Images of a full batch.
    record : Recorder, optional
        Without it every step is run as usual.
    log : callable
        Takes a line for the user.
    """

    def __init__(self, model: nn.Module, full: int, record: Recorder | None, log: Callable[[str], object]):
        self._model, self._full, self._record, self._log = model, full, record, log
        self._key: Any = None
        self._recording: Recording | None = None
        self._told = False

    @property
    def held(self) -> bool:
        """Whether there is one, which takes memory."""
        return self._recording is not None

    def stop(self, why: str) -> None:
        """Run every step as usual from now on, and free what was recorded."""
        if self._record:
            self._log(f"steps are launched one operation at a time, not as a CUDA graph: {why}")
        self._record = self._recording = None

    def run(self, key: Any, seed: int, work: Callable[..., tuple[torch.Tensor, ...]], inputs: tuple[torch.Tensor, ...]
            ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Leave gradients in the model, and return the results of `work`, by whichever way.

        Parameters
        ----------
        key : hashable
            What else decides which operations the work is made of, such as the modules that are trained.
        seed : int
            Of torch's random numbers, set before.
        work, inputs
            See `Recording`.
        """
        if self._record is None or len(inputs[0]) != self._full:
            return work(*inputs)
        key = (key, *((each.shape, each.dtype, each.stride()) for each in inputs))
        if key != self._key:
            self._key, self._recording = key, None  # what comes once is not worth recording
            return work(*inputs)
        recording = self._recording
        if recording is not None and recording.proofs == PROOFS:
            return recording(*inputs)
        with _kept_buffers(self._model) as (before, after):
            expected = work(*inputs)
            after()
            gradients = _gradients(self._model)
            try:
                before()
                if recording is None:
                    recording = self._recording = Recording(self._model, work, inputs, self._record)
                    before()
                torch.manual_seed(seed)
                found = recording(*inputs)
                apart = _apart(expected, gradients, found, _gradients(self._model))
            except RuntimeError as error:  # a network may do what cannot be recorded; or there is too little memory
                self.stop(one_line(error))
            else:
                self._judge(recording, apart)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return expected

    def _judge(self, recording: Recording, apart: float) -> None:
        if not apart < APART:  # nor NaN
            self.stop(f"replayed, gradients are {apart:.2g} of their length away")
            return
        recording.proofs += 1
        if recording.proofs == PROOFS and not self._told:
            self._told = True
            self._log("steps are replayed as a CUDA graph")


def _gradients(model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    return {parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None}


def _apart(
    expected: tuple[torch.Tensor, ...], gradients: dict[nn.Parameter, torch.Tensor], found: tuple[torch.Tensor, ...],
    others: dict[nn.Parameter, torch.Tensor],
) -> float:  # fmt: skip
    """Return how far results and gradients are apart, as a share of their length."""
    if gradients.keys() != others.keys():
        return float("inf")
    shares = []
    pairs = (list(expected), list(found)), (list(gradients.values()), [others[each] for each in gradients])
    for ours, theirs in pairs:
        length = torch.stack([each.float().norm() for each in ours]).norm()
        difference = torch.stack([(a.float() - b.float()).norm() for a, b in zip(ours, theirs, strict=True)]).norm()
        shares.append(difference / length.clamp(min=1e-12))
    return float(torch.stack(shares).max())


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[tuple[Work, Work]]:
    """Yield what puts buffers back to what they are now, and what notes those that they are to be at the end."""
    start = [buffer.clone() for buffer in model.buffers()]
    end = start

    def before() -> None:
        _put(model, start)

    def after() -> None:
        nonlocal end
        end = [buffer.clone() for buffer in model.buffers()]

    try:
        yield before, after
    finally:
        _put(model, end)


@torch.no_grad()
def _put(model: nn.Module, values: list[torch.Tensor]) -> None:
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)
