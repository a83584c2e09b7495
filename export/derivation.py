"""What a gradient rule works with: the forward graph that it may extend, the backward graph that it builds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from edgetta.errors import EdgettaError
from edgetta.segments.contract import Residual, ResidualKind
from edgetta.segments.graph import Graph, GraphBuilder, Node, reshaping


class DifferentiationError(EdgettaError):
    """A frozen part holds an operator whose gradient edgetta does not know."""


class Derivation:
    """The forward graph being extended, the backward graph being built, and the residuals between them.

    given   inputs of the forward that the backward gets, too, so that nothing need be kept of them
    """

    def __init__(self, graph: Graph, given: Collection[str] = ()) -> None:
        self.forward = GraphBuilder.of(graph, "r").sharing()
        self.backward = GraphBuilder("g").sharing()
        self.given = frozenset(given)
        self.backward.constants = dict(graph.constants)  # one set of names for both graphs; what is unused is pruned
        self.residuals: dict[str, Residual] = {}
        self._outputs = frozenset(graph.outputs)
        self._copies: dict[str, str] = {}
        self._weights = {node.output: node for node in graph.nodes if node.op == "DequantizeLinear"}

    def save(self, name: str, kind: ResidualKind, low: float = 0.0, high: float = 1.0) -> str:
        """Make a forward value available to the backward graph; returns the name that it has there.

        That is its own, but for an output of the segment: what is handed on and what is kept are two tensors.
        """
        if name in self.forward.constants:
            return self.backward.constant(name, self.forward.constants[name])
        if name in self._outputs:
            if name not in self._copies:
                self._copies[name] = self.forward.emit("Identity", name)
            name = self._copies[name]
        value = self.forward.values[name]
        if name in self.given:
            self.backward.values[name] = value
            return name
        if name not in self.residuals:
            self.residuals[name] = Residual(value, kind if value.per_sample else "scale", low, high)
            self.backward.values[name] = value
        return name

    def constant(self, name: str) -> bool:
        """Whether a forward value is a weight."""
        return name in self.forward.constants or name in self._weights

    def weight(self, name: str) -> tuple[str, str | None]:
        """What a constant operand is made of: its own name, or those of its int8 codes and their scales."""
        if name in self.forward.constants:
            return name, None
        node = self._weights.get(name)
        if node is None:
            raise DifferentiationError(f"{name!r} is neither a weight nor an input of the graph")
        return node.inputs[0], node.inputs[1]

    def in_backward(self, name: str, tensor: Tensor, scale: str | None, axis: int) -> str:
        """A form of a weight in the backward graph; where it is made of codes, `axis` is that of their scales."""
        stored = self.backward.constant(name, tensor)
        if scale is None:
            return stored
        scales = self.backward.constant(scale, self.forward.constants[scale])
        return self.backward.emit("DequantizeLinear", stored, scales, axis=axis)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a forward value or weight."""
        return self.forward.shape(name)

    def reshape(self, gradient: str, shape: Sequence[int]) -> str:
        """Give a gradient the forward shape `shape`."""
        source = self.backward.shape(gradient)
        return self.backward.emit("Reshape", gradient, shape=reshaping(source, shape))

    def unbroadcast(self, gradient: str, name: str) -> str:
        """Sum a gradient over the axes along which the forward value `name` was broadcast."""
        if self.constant(name):
            return gradient
        target, source = self.shape(name), self.backward.shape(gradient)
        padded = (1,) * (len(source) - len(target)) + target
        axes = [i for i, (have, want) in enumerate(zip(source, padded, strict=True)) if want == 1 and have != 1]
        if axes:
            gradient = self.backward.emit("ReduceSum", gradient, axes=axes, keepdims=1)
        return gradient if len(target) == len(source) else self.reshape(gradient, target)


Rule = Callable[[Derivation, Node, str], list[str | None]]
RULES: dict[str, Rule] = {}
"""Operator -> rule: given a node and the gradient of its output, the gradients of its inputs (None: no gradient)."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the function below as the gradient rule of `operators`."""

    def register(function: Rule) -> Rule:
        for op in operators:
            RULES[op] = function
        return function

    return register
