"""The five programs of a network (see `edgetta.engines.contract`), derived once for every engine.

`derive_programs` joins the settled pieces to one graph, differentiates it for all parameters, and spells the
statistics in the two forms that there are: given (`predict`, `forward`, `recompute`), or mixed on the way (`measure`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from edgetta.adaptation.meta_network import MetaSpec
from edgetta.engines.contract import Array, Layout, ProgramSet, Statistics
from edgetta.export.batch_norm import Frozen
from edgetta.export.whole_backward import differentiate_whole
from edgetta.export.whole_network import Layer, WholeNetwork, compose
from edgetta.segments.graph import Graph, GraphBuilder

BEFORE, SHARE = "before", "share"
MAPS = ("gain", "offset", "factor", "power", "floor")
"""From the mixed moments to the statistics that are used, see `contract.Mixing`."""


def derive_programs(pieces: Mapping[str, Frozen], metas: Sequence[MetaSpec], seed: int = 0) -> ProgramSet:
    """The programs of settled pieces ("stem", "part1" ... "partK", "classifier") and their meta-networks.

    Raises `DifferentiationError` naming what has no gradient.
    """
    network = compose(pieces, metas, seed)
    derived = differentiate_whole(network)
    logits = network.graph.outputs[0]
    forward = _with_distances_and_moments(network, derived.forward)
    layers = {layer.name: tuple(layer.source_mean.shape) for layer in network.layers}
    parameters = Layout({name: tuple(value.shape) for name, value in network.parameters.items()})
    statistics = Layout(layers)
    return ProgramSet(
        predict=_read_only(network.graph),
        measure=_read_only(_measuring(network)),
        forward=_read_only(forward),
        backward=derived.backward,
        recompute=_read_only(derived.recompute),
        residuals=derived.residuals,
        parameters=parameters,
        statistics=statistics,
        shipped=_vector(parameters, network.parameters),
        source=Statistics(
            _vector(statistics, {layer.name: layer.source_mean for layer in network.layers}),
            _vector(statistics, {layer.name: layer.source_variance for layer in network.layers}),
        ),
        input_shape=network.graph.values["x"].shape[1:],  # type: ignore[arg-type]
        classes=network.graph.values[logits].shape[1],
    )


def _with_distances_and_moments(network: WholeNetwork, forward: Graph) -> Graph:
    """The forward with the distances and the batch's own moments between its logits and its residuals."""
    builder = GraphBuilder.of(forward, "d").sharing()
    distances = []
    for place in network.metas:
        difference = builder.emit("Abs", builder.emit("Sub", place.out, place.frozen))
        axes = list(range(1, len(builder.shape(difference))))
        distances.append(builder.emit("ReduceMean", difference, axes=axes, keepdims=0))
    means, variances = [], []
    for layer in network.layers:
        mean, variance = _moments(builder, layer.x, layer.mean)
        means.append(mean)
        variances.append(variance)
    logits, *residuals = forward.outputs
    return builder.graph([logits, *distances, *means, *variances, *residuals], lent=forward.inputs)


def _moments(builder: GraphBuilder, x: str, about: str) -> tuple[str, str]:
    """A batch's own mean and biased variance at a layer, from one pass over x - about, `about` a mean near its own.

    E[t^2] - E[t]^2 is as accurate as two passes where t is centred; rounding alone could make it negative.
    """
    channels, rank = builder.shape(x)[1], len(builder.shape(x))
    column = builder.emit("Reshape", about, shape=[1, channels] + [1] * (rank - 2))
    centred = builder.emit("Sub", x, column)
    mean = builder.emit("ChannelMean", centred)
    square = builder.emit("ChannelMean", builder.emit("Mul", centred, centred))
    variance = builder.emit("Relu", builder.emit("Sub", square, builder.emit("Mul", mean, mean)))
    return builder.emit("Add", mean, about), variance


def _measuring(network: WholeNetwork) -> Graph:
    """The network with statistics mixed on the way, from those before and the batch's own."""
    graph, builder = network.graph, GraphBuilder("m").sharing()
    builder.constants = dict(graph.constants)
    names = {"": "", **{name: name for name in graph.constants}}
    for name in ("x", *network.parameters):
        names[name] = builder.input(name, graph.values[name].shape)
    share = builder.input(SHARE, (1,))
    rest = builder.emit("Sub", builder.scalar(1.0), share)
    both = builder.emit("Mul", share, rest)
    at = {layer.mean: layer for layer in network.layers}
    means: dict[str, str] = {}
    variances: dict[str, str] = {}
    for node in graph.nodes:
        layer = at.get(node.inputs[3]) if node.op == "BatchNormalization" else None
        inputs = [names[name] for name in (node.inputs if layer is None else node.inputs[:3])]
        if layer is not None:
            before = builder.input(f"{BEFORE}.mean.{layer.name}", tuple(layer.source_mean.shape))
            own = _moments(builder, inputs[0], before)
            inputs += _mixed(builder, layer, own, before, share, rest, both)
            means[layer.name], variances[layer.name] = own
        names[node.output] = builder.emit(node.op, *inputs, **node.attributes)
    order = [layer.name for layer in network.layers]
    return builder.graph([names[graph.outputs[0]], *(means[n] for n in order), *(variances[n] for n in order)])


def _mixed(
    builder: GraphBuilder, layer: Layer, own: tuple[str, str], mean: str, share: str, rest: str, both: str
) -> tuple[str, str]:
    """Mean and variance that a layer normalises with, see `contract.Mixing`."""
    emit, shape = builder.emit, tuple(layer.source_mean.shape)
    before = [mean, builder.input(f"{BEFORE}.variance.{layer.name}", shape)]
    gain, offset, factor, power, floor = (builder.input(f"{kind}.{layer.name}", shape) for kind in MAPS)
    mixed = [
        emit("Add", emit("Mul", old, rest), emit("Mul", new, share)) for old, new in zip(before, own, strict=True)
    ]
    apart = emit("Sub", own[0], before[0])
    variance = emit("Add", mixed[1], emit("Mul", emit("Mul", apart, apart), both))
    raised = emit("Pow", emit("Add", variance, floor), power)
    return emit("Add", emit("Mul", gain, mixed[0]), offset), emit("Mul", factor, raised)


def _read_only(graph: Graph) -> Graph:
    """The graph without inputs that no node reads."""
    read = {name for node in graph.nodes for name in node.inputs}
    kept = tuple(name for name in graph.inputs if name in read or name in graph.outputs or name == "x")
    return replace(graph, inputs=kept)


def _vector(layout: Layout, values: Mapping[str, Tensor]) -> Array:
    return layout.join({name: value.detach().cpu().float().numpy() for name, value in values.items()})
