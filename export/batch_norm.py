"""What becomes of the frozen BatchNorms: the policies `source`, `batch` and `ema`.

source  the statistics of training; folded into the convolution before it, otherwise a per-channel affine map
batch   the statistics of the current batch, constants in the backward: its residual is one scale per channel
ema     running statistics that follow the stream, for small batches; they are inputs and outputs of the graph
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from edgetta.errors import UsageError
from edgetta.segments.graph import Graph, GraphBuilder, Node

BatchNormPolicy = Literal["source", "batch", "ema"]
EMA_MOMENTUM = "ema_momentum"


@dataclass(frozen=True)
class Frozen:
    """A segment's graph once its BatchNorms are settled.

    `state` maps each state input (running mean or variance) to the output that replaces it after a batch, and
    `initial_state` holds the values to begin with. `biases` are the inputs that hold adaptable biases, with their
    shipped values in `initial_biases`. The graph's inputs are "x", the state, `ema_momentum` if there is state, and the biases.
    """

    graph: Graph
    state: Mapping[str, str]
    initial_state: Mapping[str, torch.Tensor]
    initial_biases: Mapping[str, torch.Tensor]


def settle(graph: Graph, policy: BatchNormPolicy, adapt_bias: bool = False) -> Frozen:
    """Apply a BatchNorm `policy` to a segment; with `adapt_bias` its per-channel biases become inputs.

    Raises `UsageError` for an unknown policy.
    """
    if policy not in get_args(BatchNormPolicy):
        raise UsageError(f"unknown BatchNorm policy {policy!r}; choose one of {', '.join(get_args(BatchNormPolicy))}")
    if policy == "source":
        graph = fold(graph)
    builder = GraphBuilder(f"{policy}_")
    builder.inputs = list(graph.inputs)
    builder.constants = dict(graph.constants)
    builder.values = dict(graph.values)
    state: dict[str, str] = {}
    initial_state: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        inputs = [renamed.get(name, name) for name in node.inputs]
        bias_at = {"BatchNormalization": 2, "Conv": 2}.get(node.op)
        movable = bias_at is not None and len(inputs) > bias_at and inputs[bias_at] in builder.constants
        bias = ""
        if adapt_bias and movable and bias_at is not None:
            bias = inputs[bias_at]
            zero = torch.zeros_like(builder.constants[bias])
            inputs[bias_at] = builder.constant(f"zeros.{zero.numel()}", zero)
            if node.op == "Conv":
                inputs = inputs[:2]
        if node.op == "BatchNormalization" and policy != "source":
            mean = builder.emit("ChannelMean", inputs[0])
            variance = builder.emit("ChannelVariance", inputs[0], mean)
            if policy == "ema":
                mean = _follow(builder, inputs[3], mean, state, initial_state)
                variance = _follow(builder, inputs[4], variance, state, initial_state)
            inputs[3:] = [mean, variance]
        renamed[node.output] = node.output
        builder.nodes.append(Node(node.op, tuple(inputs), node.output, node.attributes))
        if bias:
            values = builder.constants[bias]
            rank = len(builder.shape(node.output))
            name = builder.input(f"bias.{bias}", (1, values.numel(), *([1] * (rank - 2))))
            biases[name] = values.reshape(builder.values[name].shape)
            renamed[node.output] = builder.emit("Add", node.output, name)
    outputs = [renamed.get(graph.outputs[0], graph.outputs[0]), *state.values()]
    return Frozen(builder.graph(outputs), state, initial_state, biases)


def fold(graph: Graph) -> Graph:
    """Fold each BatchNorm with constant statistics into the convolution before it, where that is its only reader."""
    consumers = graph.consumers()
    producers = graph.producers()
    constants = dict(graph.constants)
    replaced: dict[str, Node] = {}
    removed: set[str] = set()
    for node in graph.nodes:
        if node.op != "BatchNormalization":
            continue
        source = producers.get(node.inputs[0])
        if (
            source is None
            or source.op != "Conv"
            or len(consumers[source.output]) > 1
            or source.output in graph.outputs
        ):
            continue
        scale, bias, mean, var = (constants[name].double() for name in node.inputs[1:])
        weight = constants[source.inputs[1]]
        old_bias = constants[source.inputs[2]].double() if len(source.inputs) > 2 and source.inputs[2] else 0.0
        factor = scale / torch.sqrt(var + node.attributes["epsilon"])
        names = f"{source.inputs[1]}.folded", f"{node.inputs[2]}.folded"
        constants[names[0]] = (weight.double() * factor.reshape(-1, 1, 1, 1)).to(weight.dtype)
        constants[names[1]] = (bias + (old_bias - mean) * factor).to(weight.dtype)
        replaced[node.output] = Node("Conv", (source.inputs[0], *names), node.output, source.attributes)
        removed.add(source.output)
    nodes = tuple(replaced.get(node.output, node) for node in graph.nodes if node.output not in removed)
    return Graph(graph.inputs, graph.outputs, nodes, graph.values, constants).pruned()


def _follow(
    builder: GraphBuilder, source: str, current: str, state: dict[str, str], initial: dict[str, torch.Tensor]
) -> str:
    """running + momentum * (current - running), where running comes in as state and leaves as state."""
    shape = tuple(builder.constants[source].shape)
    running = builder.input(f"state.{source}", shape)
    if EMA_MOMENTUM not in builder.values:
        builder.input(EMA_MOMENTUM, (1,))
    step = builder.emit("Mul", builder.emit("Sub", current, running), EMA_MOMENTUM)
    updated = builder.emit("Add", running, step)
    state[running] = updated
    initial[running] = builder.constants[source]
    return updated
