"""The torch engine: runs a segment's graphs operator by operator, without autograd.

It needs no file and no exporter, runs in any floating-point type and on any device, and is the reference that the
other engines are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph, Node
from edgetta.segments.operators import OPERATORS

# Operators that may write their result over their first argument, where nothing else needs that.
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu_,
    "Masked": lambda x, mask: x.mul_(mask.view(torch.uint8)),
    "Add": Tensor.add_,
    "Mul": Tensor.mul_,
}
_VIEWS = ("Reshape", "Transpose", "Slice", "Detach")  # their result may share memory with their argument


@dataclass(frozen=True)
class _Step:
    """One call, and the values that nothing needs after it."""

    call: Callable[..., Tensor]
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    done: tuple[str, ...]


class Program:
    """A graph compiled to a list of calls. Values are freed after their last use."""

    def __init__(self, graph: Graph, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.graph = graph
        self.constants = {name: _moved(tensor, device, dtype) for name, tensor in graph.constants.items()}
        self._wanted = set(graph.outputs)
        nodes = _schedule(graph)
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            last |= dict.fromkeys((*node.inputs, node.output), i)
        made = {node.output for node in nodes}
        shared = {name for node in nodes if node.op in _VIEWS for name in (node.inputs[0], node.output)}
        self._steps = []
        for i, node in enumerate(nodes):
            done = tuple(n for n in dict.fromkeys((*node.inputs, node.output)) if n in made and last[n] == i)
            call = OPERATORS[node.op]
            if node.op in _IN_PLACE:
                first, *others = node.inputs
                free = first in done and first not in self._wanted and first not in shared and first not in others
                if free and graph.values[first].shape == graph.values[node.output].shape:
                    call = _IN_PLACE[node.op]
            self._steps.append(_Step(call, node.inputs, node.output, node.attributes, done))

    def run(self, inputs: Mapping[str, Tensor], keep: Callable[[str, Tensor], Tensor] | None = None) -> list[Tensor]:
        """The graph's outputs. `keep(name, tensor)` may replace each by something smaller once nothing reads it."""
        values: dict[str, Tensor | None] = {**self.constants, **inputs, "": None}
        results: dict[str, Tensor] = {}
        for step in self._steps:
            values[step.output] = step.call(*[values[name] for name in step.inputs], **step.attributes)
            for name in step.done:
                value = values.pop(name)
                if name in self._wanted and value is not None:
                    results[name] = keep(name, value) if keep else value
        return [results[name] if name in results else values[name] for name in self.graph.outputs]  # type: ignore[misc]


class TorchSegment:
    """A frozen segment on the torch engine (see `contract.Segment`), in any floating-point `dtype`.

    With `pack=False` the residuals stay as they are, unrounded: the exact reference.
    """

    def __init__(
        self,
        graphs: SegmentGraphs,
        gradient: GradientMode = "exact",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pack: bool = True,
    ) -> None:
        self.graphs = graphs
        self.gradient: GradientMode = gradient
        self.dtype = dtype
        self.state = {name: _moved(t, device, dtype).clone() for name, t in graphs.initial_state.items()}
        self.affine = {name: _moved(t, device, dtype).clone() for name, t in graphs.initial_affine.items()}
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._pack = pack
        forward = graphs.forward
        plain = forward.outputs[: 1 + len(graphs.state)]
        predict = Graph(forward.inputs, plain, forward.nodes, forward.values, forward.constants).pruned()
        self._predict = Program(predict, device, dtype)
        self._forward = Program(forward, device, dtype) if gradient == "exact" and graphs.backward else None
        backward = {"exact": graphs.backward, "recompute": graphs.recompute, "local": None}[gradient]
        self._backward = Program(backward, device, dtype) if backward else None

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.affine}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum, dtype=x.dtype, device=x.device)
        residuals = Residuals(batch=x.shape[0])
        exact = keep and self._forward is not None
        with torch.no_grad():
            if exact and self._forward is not None:
                outputs = self._forward.run(inputs, self._keep)
            else:
                outputs = self._predict.run(inputs)
        plain = 1 + len(self.graphs.state)
        if exact:
            residuals.kept = dict(zip(self.graphs.forward.outputs[plain:], outputs[plain:], strict=True))
            if "x" in residuals.kept:
                residuals.shared["x"] = residuals.kept.pop("x")
        elif keep and self.gradient == "recompute":
            residuals.shared["x"] = x
            residuals.kept = {name: t for name, t in inputs.items() if name in self.state or name == "ema_momentum"}
        self.state = dict(zip(self.state, outputs[1:plain], strict=True))
        return outputs[0], residuals

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._backward is None:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        inputs = {**residuals.shared, "grad_y": grad_y}
        if self.gradient == "recompute":
            inputs |= {**residuals.kept, **self.affine}
        else:
            for name in list(residuals.kept):
                kept = residuals.kept.pop(name)
                inputs[name] = self._residuals[name].unpack(kept, residuals.batch, self.dtype) if self._pack else kept
        with torch.no_grad():
            outputs = self._backward.run(inputs)
        return outputs[0], dict(zip(self.affine, outputs[1:], strict=True))

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        residual = self._residuals.get(name)
        if residual is None:
            return tensor
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # a view would keep the whole of its base
        return residual.pack(tensor) if self._pack else tensor


def _schedule(graph: Graph) -> list[Node]:
    """The nodes in the order in which they run.

    What makes residuals alone, and every mask, comes directly behind the last value that it reads, so that this value
    can be freed: a graph lists them behind all others. (ONNX Runtime orders nodes by itself, to the same effect.)
    """
    needed = {graph.outputs[0]}
    for node in reversed(graph.nodes):
        if node.output in needed:
            needed.update(node.inputs)
    place: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        early = node.output not in needed or graph.values[node.output].dtype == "bool"
        place[node.output] = max((place[n] for n in node.inputs if n in place), default=0) if early else i
    return sorted(graph.nodes, key=lambda node: place[node.output])  # stable, so what is read stays in front


def _moved(constant: Any, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    tensor = torch.as_tensor(constant)
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
