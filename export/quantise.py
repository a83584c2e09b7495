"""Static quantisation of frozen graphs to int8: calibrate on source images, then round weights and activations.

Symmetric, with zero point 0: what TensorRT demands and Arm processors do fastest. Weights have one scale per output
channel; what a convolution or a matrix product with weights reads and makes has one scale per tensor, chosen so that
the squared error of rounding and clipping is least on source images. The graph says so with `FakeQuantize` and
`DequantizeLinear`; written as ONNX these are the QDQ pairs that ONNX Runtime and TensorRT turn into int8 arithmetic.
Gradients go straight through the rounding, so the backward needs no more residuals than before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgetta.adaptation.model import AdaptableModel
from edgetta.errors import UsageError
from edgetta.export.batch_norm import EMA_MOMENTUM
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph, GraphBuilder, Node
from edgetta.segments.torch_engine import Program

Ranges = Mapping[str, Mapping[str, float]]
"""Largest magnitude that int8 stands for: segment name (or "source") -> name of the value -> range."""

_SHARES = torch.linspace(0.3, 1.0, 36)  # of the largest magnitude, tried as the range
_SAMPLE = 1 << 14  # values per tensor and batch that the range is chosen on


def measure_ranges(model: AdaptableModel, batches: Iterable[Tensor]) -> dict[str, dict[str, float]]:
    """The range of every value that quantisation rounds, on source images (N, C, H, W) in [0, 1].

    The float network runs with the running statistics of its training, part after part without meta-networks.
    Raises `UsageError` where there are no images, or no convolution and no matrix product with weights.
    """
    chain = model.segments()
    forwards = {name: graphs.forward for name, graphs in chain.items()} | {"source": model.source}
    watched = {name: _watched(graph) for name, graph in forwards.items()}
    if not any(watched.values()):
        raise UsageError("int8 rounds convolutions and linear layers, and this network has none")
    samples: dict[str, dict[str, list[Tensor]]] = {n: {v: [] for v in names} for n, names in watched.items()}
    programs = {n: _program(graph, watched[n]) for n, graph in forwards.items()}
    count = 0
    for images in batches:
        count += len(images)
        x = images
        for name, graphs in chain.items():
            x, *values = programs[name].run(_inputs(graphs, x))
            _collect(samples[name], watched[name], values)
        _, *values = programs["source"].run({"x": images})
        _collect(samples["source"], watched["source"], values)
    if not count:
        raise UsageError("int8 needs source images to choose its ranges on; give some")
    return {name: {value: _range(found) for value, found in values.items()} for name, values in samples.items()}


def quantise(graph: Graph, ranges: Mapping[str, float]) -> Graph:
    """The graph with its convolutions and matrix products in int8. Raises `UsageError` where a range is missing."""
    builder = GraphBuilder("q")
    builder.values, builder.constants, builder.inputs = dict(graph.values), dict(graph.constants), list(graph.inputs)
    renamed: dict[str, str] = {}
    rounded: dict[str, str] = {}

    def round_(name: str, key: str) -> str:
        if key not in ranges:
            raise UsageError(f"there is no range for {key!r}; calibrate this network with this version of edgetta")
        if name not in rounded:
            scale = torch.tensor(max(ranges[key], 1e-8) / 127)
            rounded[name] = builder.emit("FakeQuantize", name, builder.constant(f"{key}.scale", scale))
        return rounded[name]

    for node in graph.nodes:
        inputs = [renamed.get(name, name) for name in node.inputs]
        if not _quantised(node, graph):
            builder.nodes.append(replace(node, inputs=tuple(inputs)))
            continue
        axis = _output_axis(node)
        inputs[0] = round_(inputs[0], node.inputs[0])
        inputs[1] = _weight(builder, node.inputs[1], graph.constants[node.inputs[1]], axis)
        builder.nodes.append(replace(node, inputs=tuple(inputs)))
        renamed[node.output] = round_(node.output, node.output)
    return builder.graph([renamed.get(name, name) for name in graph.outputs])


def _quantised(node: Node, graph: Graph) -> bool:
    """Convolutions and matrix products whose second operand, and no other, is a weight."""
    if node.op not in ("Conv", "MatMul") or node.inputs[0] in graph.constants:
        return False
    weight = graph.constants.get(node.inputs[1])
    return weight is not None and weight.dim() == (4 if node.op == "Conv" else 2)


def _output_axis(node: Node) -> int:
    return 0 if node.op == "Conv" else 1


def _weight(builder: GraphBuilder, name: str, weight: Tensor, axis: int) -> str:
    """int8 codes and one scale per output channel, as a value of the graph."""
    others = [i for i in range(weight.dim()) if i != axis]
    scale = weight.abs().amax(others).clamp_min(1e-8).float() / 127
    column = [1] * weight.dim()
    column[axis] = -1
    codes = (weight.float() / scale.reshape(column)).round().clamp(-127, 127).to(torch.int8)
    return builder.emit(
        "DequantizeLinear",
        builder.constant(f"{name}.int8", codes),
        builder.constant(f"{name}.scale", scale),
        axis=axis,
    )


def _watched(graph: Graph) -> list[str]:
    """Names of the values that are rounded, in order."""
    names = [n for node in graph.nodes if _quantised(node, graph) for n in (node.inputs[0], node.output)]
    return list(dict.fromkeys(names))


def _program(graph: Graph, watched: list[str]) -> Program:
    """Runs a graph for its first output and the watched values."""
    outputs = (graph.outputs[0], *watched)
    return Program(Graph(graph.inputs, outputs, graph.nodes, graph.values, graph.constants).pruned())


def _inputs(graphs: SegmentGraphs, x: Tensor) -> dict[str, Tensor]:
    momentum = {EMA_MOMENTUM: torch.zeros(1)} if graphs.state else {}
    return {"x": x, **graphs.initial_state, **graphs.initial_biases, **momentum}


def _collect(samples: dict[str, list[Tensor]], names: list[str], values: list[Tensor]) -> None:
    """Keep magnitudes spread over each value; what is so rare that they miss it is clipped."""
    for name, value in zip(names, values, strict=True):
        flat = value.detach().float().flatten().abs()
        samples[name].append(flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].clone())


def _range(found: list[Tensor]) -> float:
    """The range with the least squared error of rounding and clipping among shares of the largest magnitude."""
    values = torch.cat(found).double()
    largest = float(values.max())
    if largest == 0.0:
        return 0.0
    errors = []
    for share in _SHARES:
        scale = float(share) * largest / 127
        errors.append(float(((values / scale).round().clamp(max=127) * scale - values).square().mean()))
    return float(_SHARES[errors.index(min(errors))]) * largest
