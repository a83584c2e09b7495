"""What becomes of the frozen BatchNorms: the policies `source`, `batch` and `ema`.

source  the statistics of training; folded into the convolution before it, otherwise a per-channel affine map
batch   the statistics of the current batch, constants in the backward: its residual is one scale per channel
ema     running statistics that follow the stream, for small batches; they are inputs and outputs of the graph
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from edgetta.errors import UsageError
from edgetta.segments.graph import Graph, GraphBuilder, Node

BatchNormPolicy = Literal["source", "batch", "ema"]
Adapt = Literal["meta", "bias", "affine"]
"""What adapts: meta-networks alone; biases inside the frozen parts, too; or BatchNorm's weights as well."""
EMA_MOMENTUM = "ema_momentum"


@dataclass(frozen=True)
class Frozen:
    """A segment's graph once its BatchNorms are settled.

    `state` maps each state input (running mean or variance) to the output that replaces it after a batch, and
    `initial_state` holds the values to begin with. `initial_affine` holds the shipped values of the inputs that adapt.
    The graph's inputs are "x", the state, `ema_momentum` if there is state, and those that adapt.
    """

    graph: Graph
    state: Mapping[str, str]
    initial_state: Mapping[str, torch.Tensor]
    initial_affine: Mapping[str, torch.Tensor]


def settle(graph: Graph, policy: BatchNormPolicy, adapt: Adapt = "meta") -> Frozen:
    """Apply a BatchNorm `policy` to a segment; with `adapt` its per-channel biases, and weights, become inputs.

    Biases are those of normalisations, convolutions and linear layers; one in front of a BatchNorm that takes
    statistics from the stream is left out, because the normalisation cancels it. Weights are those of BatchNorms that
    take statistics from the stream; the gradient through these is then derived, too (`gradients_batch_norm`).
    Raises `UsageError` for an unknown policy, or another `adapt`.
    """
    if policy not in get_args(BatchNormPolicy):
        raise UsageError(f"unknown BatchNorm policy {policy!r}; choose one of {', '.join(get_args(BatchNormPolicy))}")
    if adapt not in get_args(Adapt):
        raise UsageError(f"adapt {adapt!r} is unknown; choose one of {', '.join(get_args(Adapt))}")
    return _Settling(fold(graph) if policy == "source" else graph, policy, adapt).result()


def fold(graph: Graph) -> Graph:
    """Fold each BatchNorm with constant statistics into the convolution before it, where that is its only reader."""
    consumers = graph.consumers()
    producers = graph.producers()
    constants = dict(graph.constants)
    replaced: dict[str, Node] = {}
    removed: set[str] = set()
    for node in graph.nodes:
        source = producers.get(node.inputs[0]) if node.op == "BatchNormalization" else None
        if (
            source is None
            or source.op != "Conv"
            or len(consumers[source.output]) > 1
            or source.output in graph.outputs
            or any(name not in constants for name in node.inputs[1:])
        ):
            continue
        scale, bias, mean, var = (constants[name].double() for name in node.inputs[1:])
        weight = constants[source.inputs[1]]
        old_bias = constants[source.inputs[2]].double() if len(source.inputs) > 2 and source.inputs[2] else 0.0
        factor = scale / torch.sqrt(var + node.attributes["epsilon"])
        names = _unused(f"{source.inputs[1]}.folded", constants), _unused(f"{node.inputs[2]}.folded", constants)
        constants[names[0]] = (weight.double() * factor.reshape(-1, 1, 1, 1)).to(weight.dtype)
        constants[names[1]] = (bias + (old_bias - mean) * factor).to(weight.dtype)
        replaced[node.output] = Node("Conv", (source.inputs[0], *names), node.output, source.attributes)
        removed.add(source.output)
    nodes = tuple(replaced.get(node.output, node) for node in graph.nodes if node.output not in removed)
    return Graph(graph.inputs, graph.outputs, nodes, graph.values, constants).pruned()


class _Settling:
    """One pass over a graph that rebuilds it with a policy applied."""

    def __init__(self, graph: Graph, policy: BatchNormPolicy, adapt: Adapt) -> None:
        self.graph = graph
        self.follows_stream = policy != "source"
        self.running = policy == "ema"
        self.adapt = adapt
        self.consumers = graph.consumers()
        self.builder = GraphBuilder(f"{policy}_")
        self.builder.inputs = list(graph.inputs)
        self.builder.constants = dict(graph.constants)
        self.builder.values = dict(graph.values)
        self.state: dict[str, str] = {}
        self.initial_state: dict[str, torch.Tensor] = {}
        self.affine: dict[str, torch.Tensor] = {}
        self.renamed: dict[str, str] = {}
        self.rest = ""  # 1 - momentum

    def result(self) -> Frozen:
        for node in self.graph.nodes:
            self._settle(node, [self.renamed.get(name, name) for name in node.inputs])
        output = self.graph.outputs[0]
        outputs = [self.renamed.get(output, output), *self.state.values()]
        return Frozen(self.builder.graph(outputs), self.state, self.initial_state, self.affine)

    def _settle(self, node: Node, inputs: list[str]) -> None:
        builder = self.builder
        rank = len(builder.shape(node.output))
        moved = ""  # a bias that leaves its node and is added behind it
        at = self._bias_of(node)
        if at is not None and node.op == "Add":
            inputs[at] = self._input("bias", inputs[at], [1] * (rank - 1) + [-1])
        elif at is not None:
            moved = inputs[at]
            zero = torch.zeros_like(builder.constants[moved])
            inputs[at] = "" if node.op == "Conv" else builder.constant(f"zeros.{zero.numel()}", zero)
        if node.op == "BatchNormalization" and self.follows_stream:
            inputs[3:] = self._statistics(inputs)
            if self.adapt == "affine":
                inputs[1] = self._input("weight", inputs[1], [-1])
        while inputs and not inputs[-1]:
            inputs.pop()
        builder.nodes.append(Node(node.op, tuple(inputs), node.output, node.attributes))
        if moved:
            name = self._input("bias", moved, [1, -1] + [1] * (rank - 2))
            self.renamed[node.output] = builder.emit("Add", node.output, name)

    def _bias_of(self, node: Node) -> int | None:
        """Where a node takes a per-channel bias that can adapt."""
        constants = self.graph.constants
        if self.adapt == "meta":
            return None
        if node.op == "BatchNormalization":
            return 2
        if node.op == "Conv" and len(node.inputs) > 2 and node.inputs[2]:
            readers = self.consumers.get(node.output, [])
            cancelled = self.follows_stream and node.output not in self.graph.outputs
            return None if cancelled and all(n.op == "BatchNormalization" for n in readers) else 2
        if node.op == "Add":  # of a linear layer or a LayerNorm: one number per channel, the last axis
            channels = self.graph.values[node.output].shape[-1]
            for at, name in enumerate(node.inputs):
                if name in constants and tuple(constants[name].shape) == (channels,) and channels > 1:
                    return at
        return None

    def _input(self, kind: str, constant: str, shape: list[int]) -> str:
        """A constant as an input that adapts."""
        values = self.builder.constants[constant].reshape(shape)
        name = self.builder.input(_unused(f"{kind}.{constant}", self.builder.values), values.shape)
        self.affine[name] = values
        return name

    def _statistics(self, inputs: list[str]) -> list[str]:
        mean = self.builder.emit("ChannelMean", inputs[0])
        variance = self.builder.emit("ChannelVariance", inputs[0], mean)
        return [self._follow(inputs[3], mean), self._follow(inputs[4], variance)] if self.running else [mean, variance]

    def _follow(self, source: str, current: str) -> str:
        """(1 - momentum) running + momentum current, where running comes in as state and leaves as state.

        In this form momentum 1 is exactly the batch's statistics and momentum 0 exactly the running ones.
        """
        builder = self.builder
        running = builder.input(_unused(f"state.{source}", builder.values), tuple(builder.constants[source].shape))
        if not self.rest:
            self.rest = builder.emit("Sub", builder.scalar(1.0), builder.input(EMA_MOMENTUM, (1,)))
        old, new = builder.emit("Mul", running, self.rest), builder.emit("Mul", current, EMA_MOMENTUM)
        updated = builder.emit("Add", old, new)
        self.state[running] = updated
        self.initial_state[running] = builder.constants[source]
        return updated


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, numbered where a module that runs twice has taken it already."""
    unused, count = name, 1
    while unused in taken:
        count += 1
        unused = f"{name}.{count}"
    return unused
