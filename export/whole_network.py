"""One graph of a whole adapted network: stem, parts and meta-networks, classifier, with what adapts as inputs.

Its BatchNorms take what they normalise with as inputs, too: how statistics come about is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from edgetta.adaptation.meta_network import EPSILON, MetaSpec
from edgetta.export.batch_norm import Frozen
from edgetta.segments.graph import Graph, GraphBuilder, Node

MEAN, VARIANCE = "mean", "variance"


@dataclass(frozen=True)
class MetaPlace:
    """Values around one meta-network, and those that it makes on the way."""

    x_in: str  # x~_{k-1}
    frozen: str  # x_k
    out: str  # x~_k
    inside: frozenset[str]  # what its nodes make


@dataclass(frozen=True)
class Layer:
    """A BatchNorm whose statistics are inputs: their names and its input, and where both came from."""

    name: str
    x: str  # what is normalised, channels on axis 1
    source_mean: Tensor  # (channels,)
    source_variance: Tensor

    @property
    def mean(self) -> str:
        return f"{MEAN}.{self.name}"

    @property
    def variance(self) -> str:
        return f"{VARIANCE}.{self.name}"


@dataclass(frozen=True)
class WholeNetwork:
    """The graph (inputs "x", parameters, statistics; output logits), and what its inputs are.

    parameters   shipped values by name, in order: the meta-networks', then those inside the frozen pieces
    layers       BatchNorms, in the order of execution
    """

    graph: Graph
    parameters: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    metas: tuple[MetaPlace, ...]


def compose(pieces: Mapping[str, Frozen], metas: Sequence[MetaSpec], seed: int = 0) -> WholeNetwork:
    """Join settled pieces ("stem", "part1" ... "partK", "classifier", in that order) and their meta-networks.

    A parameter or a layer of a piece begins with the piece's name, one of meta-network k with "metas.(k-1).".
    """
    return _Composition(pieces, metas, seed).result()


def initial_values(spec: MetaSpec, seed: int) -> dict[str, Tensor]:
    """Parameters of a meta-network before anything is known of its inputs.

    The published block has no scale. `identity` starts with the branch silent but its gradient alive.
    """
    size = (spec.out_channels, spec.in_channels, spec.kernel, spec.kernel)
    bound = (spec.in_channels * spec.kernel**2) ** -0.5  # torch's default for convolutions
    generator = torch.Generator().manual_seed(seed)
    one, zero = torch.ones(spec.out_channels), torch.zeros(spec.out_channels)
    return {
        "conv": (torch.rand(size, generator=generator) * 2 - 1) * bound,
        "norm_weight": one,
        "norm_bias": zero,
        "branch_weight": one,
        "branch_bias": zero,
        "scale": zero,
    }


@dataclass
class _Composition:
    pieces: Mapping[str, Frozen]
    specs: Sequence[MetaSpec]
    seed: int
    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("w").sharing())
    meta_parameters: dict[str, Tensor] = field(default_factory=dict)
    frozen_parameters: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    places: list[MetaPlace] = field(default_factory=list)

    def result(self) -> WholeNetwork:
        x = self.builder.input("x", next(iter(self.pieces.values())).graph.values["x"].shape)
        for name, piece in self.pieces.items():
            x_in, x = x, self._piece(name, piece, x)
            if name.startswith("part"):
                x = self._meta(len(self.places), x_in, x)
        parameters = {**self.meta_parameters, **self.frozen_parameters}
        statistics = [name for layer in self.layers for name in (layer.mean, layer.variance)]
        graph = self.builder.graph([x])
        graph = replace(graph, inputs=("x", *parameters, *statistics))
        return WholeNetwork(graph, parameters, tuple(self.layers), tuple(self.places))

    def _piece(self, piece: str, frozen: Frozen, x: str) -> str:
        """Copy a settled piece behind `x`; returns its output.

        What follows the stream in the settled form (running statistics that are moved on) becomes plain inputs; a bias
        that stands behind a BatchNorm goes into it, which saves a pass.
        """
        graph, builder = frozen.graph, self.builder
        running = {updated: state for state, updated in frozen.state.items()}
        bias_of = _biases_behind(frozen)
        names: dict[str, str] = {"": "", "x": x}
        for name, tensor in graph.constants.items():
            names[name] = builder.constant(name, tensor)
        moved = {bias for _, bias in bias_of.values()}
        for name, tensor in frozen.initial_affine.items():
            shape = (tensor.numel(),) if name in moved else tuple(tensor.shape)
            names[name] = self._parameter(self.frozen_parameters, f"{piece}.{name}", tensor.reshape(shape))
        for node in _needed(graph, running):
            inputs = list(node.inputs)
            if node.op == "BatchNormalization" and inputs[3] in running:
                layer = self._layer(
                    f"{piece}.{_layer_name(running[inputs[3]])}",
                    names[inputs[0]],
                    frozen.initial_state[running[inputs[3]]],
                    frozen.initial_state[running[inputs[4]]],
                )
                given = [names[n] for n in inputs[:3]]
                if node.output in bias_of:
                    given[2] = names[bias_of[node.output][1]]
                made = builder.emit(node.op, *given, layer.mean, layer.variance, **node.attributes)
                names[node.output] = made
                if node.output in bias_of:
                    names[bias_of[node.output][0]] = made
                continue
            if node.output not in names:
                names[node.output] = builder.emit(node.op, *(names[n] for n in inputs), **node.attributes)
        return names[graph.outputs[0]]

    def _meta(self, k: int, x_in: str, frozen: str) -> str:
        """x~_k = norm(x_k) + scale * ReLU(branch_norm(conv(x~_{k-1}))), see `adaptation.meta_network`."""
        spec, builder, start = self.specs[k], self.builder, len(self.builder.nodes)
        initial = initial_values(spec, self.seed + k)
        channels = spec.out_channels

        def parameter(name: str, shape: tuple[int, ...]) -> str:
            return self._parameter(self.meta_parameters, f"metas.{k}.{name}", initial[name].reshape(shape))

        def norm(name: str, x: str) -> str:
            weight, bias = parameter(f"{name}_weight", (channels,)), parameter(f"{name}_bias", (channels,))
            layer = self._layer(f"metas.{k}.{name}", x, torch.zeros(channels), torch.ones(channels))
            return builder.emit("BatchNormalization", x, weight, bias, layer.mean, layer.variance, epsilon=EPSILON)

        def turned(x: str) -> str:  # tokens (N, T, C) <-> (N, C, T)
            return builder.emit("Transpose", x, perm=[0, 2, 1]) if spec.tokens else x

        column = (1, channels, 1) if spec.tokens else (1, channels, 1, 1)
        conv = parameter("conv", (channels, spec.in_channels, spec.kernel, spec.kernel))
        kept = turned(frozen)
        if spec.normalised:
            main = norm("norm", kept)
        else:
            main = builder.emit("Mul", kept, parameter("norm_weight", column))
            main = builder.emit("Add", main, parameter("norm_bias", column))
        if spec.tokens:
            weight = builder.emit("Reshape", conv, shape=[channels, spec.in_channels])
            branch = builder.emit("MatMul", x_in, builder.emit("Transpose", weight, perm=[1, 0]))
        else:
            branch = builder.emit(
                "Conv",
                x_in,
                conv,
                strides=[spec.stride] * 2,
                pads=[spec.kernel // 2] * 4,
                dilations=[1, 1],
                group=1,
            )
        branch = builder.emit("Relu", norm("branch", turned(branch)))
        if spec.initialisation == "identity":
            branch = builder.emit("Mul", branch, parameter("scale", column))
        out = turned(builder.emit("Add", main, branch))
        inside = frozenset(node.output for node in builder.nodes[start:])
        self.places.append(MetaPlace(x_in, frozen, out, inside))
        return out

    def _parameter(self, among: dict[str, Tensor], name: str, value: Tensor) -> str:
        among[name] = value.detach().clone()
        return self.builder.input(name, tuple(value.shape))

    def _layer(self, name: str, x: str, mean: Tensor, variance: Tensor) -> Layer:
        taken = {layer.name for layer in self.layers}
        unused, count = name, 1
        while unused in taken:
            count += 1
            unused = f"{name}.{count}"
        layer = Layer(unused, x, mean.detach().clone(), variance.detach().clone())
        for statistic in (layer.mean, layer.variance):
            self.builder.input(statistic, tuple(mean.shape))
        self.layers.append(layer)
        return layer


def _needed(graph: Graph, running: Mapping[str, str]) -> list[Node]:
    """The nodes that the first output depends on, in order, but those that move running statistics on."""
    needed, found = {graph.outputs[0]}, []
    for node in reversed(graph.nodes):
        if node.output in needed:
            found.append(node)
            follows = node.op == "BatchNormalization" and node.inputs[3] in running
            needed.update(node.inputs[:3] if follows else node.inputs)
    return found[::-1]


def _biases_behind(frozen: Frozen) -> dict[str, tuple[str, str]]:
    """Output of a BatchNorm that follows the stream -> the addition of a bias that adapts, and that bias."""
    graph, found = frozen.graph, {}
    readers, running = graph.consumers(), set(frozen.state.values())
    for node in graph.nodes:
        after = readers.get(node.output, [])
        if node.op != "BatchNormalization" or node.inputs[3] not in running:
            continue
        if node.output in graph.outputs or len(after) != 1:
            continue
        bias = graph.constants.get(node.inputs[2])
        if after[0].op == "Add" and bias is not None and not bool(bias.any()):
            biases = [name for name in after[0].inputs if name in frozen.initial_affine]
            if len(biases) == 1:
                found[node.output] = (after[0].output, biases[0])
    return found


def _layer_name(state: str) -> str:
    """The module's path, of the input that holds its running mean."""
    name = state.removeprefix("state.")
    head, dot, number = name.rpartition(".")
    if number.isdigit():  # a module that runs twice
        return f"{head.removesuffix('.running_mean')}{dot}{number}"
    return name.removesuffix(".running_mean")
