"""The torch engine: runs a segment's graphs operator by operator, without autograd.

It needs no file and no exporter, runs in any floating-point type and on any device, and is the reference that the
other engines are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgetta.segments.contract import GradientMode, Residual, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.operators import OPERATORS

_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"Relu": torch.relu_}


class Program:
    """A graph compiled to a list of calls. Values are freed after their last use."""

    def __init__(self, graph: Graph, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.graph = graph
        self.constants = {name: _moved(tensor, device, dtype) for name, tensor in graph.constants.items()}
        self._steps: list[tuple[Callable[..., Tensor], tuple[str, ...], str, Mapping[str, Any], tuple[str, ...]]] = []
        last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
        pinned = {*graph.outputs, *graph.constants, *graph.inputs}
        aliases = _aliases(graph)
        for i, node in enumerate(graph.nodes):
            operator = OPERATORS[node.op]
            source = node.inputs[0] if node.inputs else ""
            if node.op in _IN_PLACE and last[source] == i and source not in pinned and source not in aliases:
                operator = _IN_PLACE[node.op]
            freed = tuple(name for name in dict.fromkeys(node.inputs) if last[name] == i and name not in pinned)
            self._steps.append((operator, node.inputs, node.output, node.attributes, freed))

    def run(
        self, inputs: Mapping[str, Tensor], on_output: Callable[[str, Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """The graph's outputs. `on_output` may replace an output as soon as nothing else reads it, to keep it smaller."""
        values: dict[str, Tensor] = {**self.constants, **inputs, "": None}  # type: ignore[dict-item]
        outputs = set(self.graph.outputs)
        for operator, names, output, attributes, freed in self._steps:
            values[output] = operator(*[values[name] for name in names], **attributes)
            if on_output is not None and output in outputs:
                kept = on_output(output, values[output])
                if kept is not values[output]:
                    outputs.discard(output)
                    self._swap(values, output, kept)
            for name in freed:
                del values[name]
        return [values.get(_packed(name), values.get(name)) for name in self.graph.outputs]  # type: ignore[misc]

    def _swap(self, values: dict[str, Tensor], name: str, kept: Tensor) -> None:
        values[_packed(name)] = kept
        if not any(name in step[1] for step in self._steps):
            del values[name]


class TorchSegment:
    """A frozen segment on the torch engine (see `contract.Segment`).

    With `imposed` masks and no packing it serves as the exact reference: `pack=False` keeps residuals unrounded.
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
        self.biases = {name: _moved(t, device, dtype).clone() for name, t in graphs.initial_biases.items()}
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._pack = pack
        predict = Graph(
            graphs.forward.inputs,
            graphs.forward.outputs[: 1 + len(graphs.state)],
            graphs.forward.nodes,
            graphs.forward.values,
            graphs.forward.constants,
        ).pruned()
        self._predict = Program(predict, device, dtype)
        self._forward = Program(graphs.forward, device, dtype) if gradient == "exact" and graphs.backward else None
        backward = {"exact": graphs.backward, "recompute": graphs.recompute, "local": None}[gradient]
        self._backward = Program(backward, device, dtype) if backward else None

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.biases}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum, dtype=x.dtype, device=x.device)
        residuals = Residuals(batch=x.shape[0])
        with torch.no_grad():
            if keep and self._forward is not None:
                outputs = self._forward.run(inputs, self._packed if self._pack else None)
                first = 1 + len(self.graphs.state)
                residuals.kept = dict(zip(self.graphs.forward.outputs[first:], outputs[first:], strict=True))
                if "x" in self._residuals:
                    residuals.shared["x"] = x
            else:
                outputs = self._predict.run(inputs)
                if keep and self.gradient == "recompute":
                    residuals.shared["x"] = x
                    residuals.kept = {k: v for k, v in inputs.items() if k in self.state or k == "ema_momentum"}
        for name, tensor in zip(self.graphs.state, outputs[1:], strict=False):
            self.state[name] = tensor
        return outputs[0], residuals

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._backward is None:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        inputs = {**residuals.shared, "grad_y": grad_y}
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            residual = self._residuals.get(name)
            unpack = residual is not None and self._pack and self.gradient == "exact"
            inputs[name] = residual.unpack(kept, residuals.batch, self.dtype) if unpack and residual else kept
        if self.gradient == "recompute":
            inputs.update(self.biases)
        with torch.no_grad():
            outputs = self._backward.run(inputs)
        return outputs[0], dict(zip(self.biases, outputs[1:], strict=True))

    def _packed(self, name: str, tensor: Tensor) -> Tensor:
        residual: Residual | None = self._residuals.get(name)
        return tensor if residual is None else residual.pack(tensor)


def _packed(name: str) -> str:
    return f"{name} (packed)"


def _moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


def _aliases(graph: Graph) -> set[str]:
    """Values that share memory with another one through a view."""
    shared: set[str] = set()
    for node in graph.nodes:
        if node.op in ("Reshape", "Transpose", "Slice"):
            shared.update((node.inputs[0], node.output))
    return shared
