"""Where a network can be cut in two: below, it is frozen and its output cached; above, it is trained from the cache.

A cut is a module's output on which alone all that comes later depends. Inside a residual block there is none: its input
goes round it. The flow is recorded with torch.fx, with blocks as its steps, so what happens inside them stays theirs.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..core.errors import PipelineError, one_line
from .blocks import part_names
from .layer_names import position_axes

QUARTERS = 4  # of a network that keeps one shape, such as a vision transformer


@dataclass(frozen=True)
class Cut:
    """A place where a network can be cut.

    Attributes
    ----------
    layer : str
        The module whose output is cached.
    shape : tuple of int
        Of that output for one image: (C, H, W) or (T, C).
    work : int
        Multiply-adds of all that comes before, for one image.
    """

    layer: str
    shape: tuple[int, ...]
    work: int


class Flow:
    """The steps of a network from images to its pooled output.

    Parameters
    ----------
    network : nn.Module
        Without hooks: they would end the recording.
    crop : (int, int)
        Height and width of its images.

    Attributes
    ----------
    graph : torch.fx.Graph
        In evaluation.
    work : int
        Multiply-adds for one image, once they are `measured`; 0 before.

    Raises
    ------
    PipelineError
        If its flow cannot be recorded.
    """

    def __init__(self, network: nn.Module, crop: tuple[int, int]):
        self.network, self._crop, self.work = network, crop, 0
        steps = set(part_names(network))
        between = {module: module.training for name, module in network.named_modules() if name not in steps}
        try:
            self._graphs = {mode: self._recorded(steps, between, mode) for mode in (False, True)}
        except PipelineError:
            raise
        except Exception as error:  # tracing runs the network's own code on stand-ins, which may raise anything
            raise PipelineError(f"This network cannot be cut: its flow depends on its images ({one_line(error)})."
                                ) from error
        finally:
            for module, mode in between.items():
                module.training = mode
        self.graph = self._graphs[False]

    def _recorded(self, steps: Collection[str], between: Collection[nn.Module], training: bool) -> fx.Graph:
        """Record the flow; dropout that no module is for is there in training and not in evaluation."""
        for module in between:
            module.training = training
        known: dict[str, Any] = {}
        while True:
            tracer = _Tracer(steps, known)
            try:
                return tracer.trace(self.network, _usual_arguments(self.network))
            except _ShapeAskedError as asked:
                # blank images are run up to there, which is only possible while nothing is being recorded
                tracer.graph.output(asked.node)
                with torch.no_grad():
                    value = fx.Interpreter(fx.GraphModule(self.network, tracer.graph)).run(self._blank(2))
                known[asked.node.name] = value.shape if isinstance(value, torch.Tensor) else None

    def _blank(self, count: int) -> torch.Tensor:
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        return torch.zeros(count, 3, *self._crop, device=device)

    @cached_property
    def cuts(self) -> list[str]:
        """The layers at which the network can be cut, from input to output."""
        nodes = [node for node in self.graph.nodes if node.op != "get_attr"]
        place = {node: number for number, node in enumerate(nodes)}
        last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
        calls = Counter(node.target for node in nodes if node.op == "call_module")
        found, furthest = [], -1  # how far any earlier value is still used
        for node in nodes:
            if node.op == "call_module" and calls[node.target] == 1 and furthest <= place[node] < last[node]:
                found.append(str(node.target))
            furthest = max(furthest, last[node])
        return found

    def measured(self) -> list[Cut]:
        """Return the cuts with shapes and work, found by running one blank image.

        Raises
        ------
        PipelineError
            If it cannot be run step by step.
        """
        measure, learning = _Measure(self), [each for each in self.network.parameters() if each.requires_grad]
        for parameter in learning:  # torch's counter follows gradients where there may be some
            parameter.requires_grad_(False)
        try:
            with torch.no_grad():
                measure.run(self._blank(1))
        except Exception as error:  # whatever the network's own code raises
            raise PipelineError(f"The steps of this network cannot be measured ({one_line(error)}).") from error
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
        self.work = measure.counter.get_total_flops() // 2
        return [Cut(name, *measure.found[name]) for name in self.cuts if measure.found[name][0]]

    def below(self, trained: Collection[str]) -> str | None:
        """Return the last cut before any of these parameters is used; None if there is none.

        Parameters
        ----------
        trained : collection of str
            Names of parameters in the network.
        """
        first = next(number for number, node in enumerate(self.graph.nodes) if self._uses(node, trained))
        before = {str(node.target) for node in list(self.graph.nodes)[:first] if node.op == "call_module"}
        cuts = [name for name in self.cuts if name in before]
        return cuts[-1] if cuts else None

    def between(self, layer: str, trained: Collection[str]) -> list[str]:
        """Return the steps that learn nothing but lie between a cut and the first that uses one of these parameters."""
        nodes = list(self.graph.nodes)
        start = next(number for number, node in enumerate(nodes) if node.target == layer)
        first = next(number for number, node in enumerate(nodes) if self._uses(node, trained))
        return [str(node.target) for node in nodes[start + 1 : first] if node.op == "call_module"
                and any(True for _ in self.network.get_submodule(str(node.target)).parameters())]

    def _uses(self, node: fx.Node, trained: Collection[str]) -> bool:
        name = str(node.target)
        if node.op == "get_attr":
            return name in trained
        return node.op == "call_module" and any(other.startswith(f"{name}.") for other in trained)

    def above(self, layer: str, training: bool = False) -> fx.GraphModule:
        """Return what comes after a cut, from its output to (N, D) pooled features; the modules are the network's own.

        Make it once the network is where it stays: buffers that no module holds would be left behind.
        """
        graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
        nodes = list(self._graphs[training].nodes)
        start = next(number for number, node in enumerate(nodes) if node.op == "call_module" and node.target == layer)
        values[nodes[start]] = graph.placeholder("activations")
        after = nodes[start + 1 :]
        needed = {node for user in after for node in user.all_input_nodes if node.op == "get_attr"}
        for node in nodes:
            if node in after or node in needed:
                values[node] = graph.node_copy(node, lambda other: values[other])
        return fx.GraphModule(self.network, graph)


class _ShapeAskedError(Exception):
    """The network asks for the shape of what a step gives."""

    def __init__(self, node: fx.Node):
        self.node = node


class _Tracer(fx.Tracer):
    """Records a network with its blocks as steps; it may ask for all of a shape but the number of images.

    Vision transformers compare the number of their tokens with that of their position embeddings.

    Parameters
    ----------
    steps : collection of str
        The modules that are steps.
    shapes : mapping
        Of the outputs that are known, by the names of their nodes; None for what is no tensor.
    """

    def __init__(self, steps: Collection[str], shapes: Mapping[str, tuple[int, ...] | None]):
        super().__init__()
        self._own, self.shapes = steps, shapes

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self._own

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    """Stands for what a step gives: a tensor of so many images, most often."""

    tracer: _Tracer

    @property
    def shape(self) -> Any:
        if self.node.name not in self.tracer.shapes:
            raise _ShapeAskedError(self.node)
        recorded, known = fx.proxy.Attribute(self, "shape"), self.tracer.shapes[self.node.name]
        return recorded if known is None else (recorded[0], *known[1:])  # type: ignore[index]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        return len(self.shape)


class _Measure(fx.Interpreter):
    """Notes each step's output and the work until it is done."""

    def __init__(self, flow: Flow):
        super().__init__(fx.GraphModule(flow.network, flow.graph))
        self.counter = FlopCounterMode(display=False)
        self.found: dict[str, tuple[tuple[int, ...], int]] = {}

    def run(self, *inputs: Any, **more: Any) -> Any:
        with self.counter:
            return super().run(*inputs, **more)

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.op == "call_module":
            shape = tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else ()
            self.found[str(node.target)] = (shape, self.counter.get_total_flops() // 2)
        return value


def stages(network: nn.Module, crop: tuple[int, int]) -> list[str]:
    """Return the layers after which the shape of a network's maps changes; of one that keeps it, each quarter's last.

    Without the last one: what its positions average to is the pooled output.
    """
    cuts = [cut for cut in Flow(network, crop).measured() if len(cut.shape) > 1
            and prod(cut.shape[axis] for axis in position_axes(cut.shape)) > 1]
    ends = [cut.layer for cut, after in pairwise(cuts) if cut.shape != after.shape]
    if len(ends) >= QUARTERS - 1:
        return ends
    if len(cuts) < QUARTERS:
        raise PipelineError("This network has no stages between which it could be cut: name its layers, as in "
                            "--layer A:meanmax+B:meanmax+pooled.")
    return [cuts[len(cuts) * quarter // QUARTERS - 1].layer for quarter in range(1, QUARTERS)]


def _usual_arguments(network: nn.Module) -> dict[str, Any]:
    """Return what a network is called with beside images, when it is called with images alone."""
    given = list(inspect.signature(network.forward).parameters.values())[1:]
    return {one.name: one.default for one in given if one.default is not one.empty}
