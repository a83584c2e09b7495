"""Static quantisation of frozen graphs to int8: calibrate on source images, then round weights and activations.

Symmetric, with zero point 0: what TensorRT demands and Arm processors do fastest. Weights have one scale per output
channel; what a convolution or a matrix product with weights reads and makes has one scale per tensor, chosen so that
the squared error of rounding and clipping is least on source images. Two things keep that error small:

- What goes into a ReLU or ReLU6 alone is rounded as what comes out: neither negative values nor large ones count.
- What goes into a BatchNorm has channels of very different size. They are made equally large by the weights' scales,
  rounded, and made what they were: one multiplication per channel.

The graph says so with `FakeQuantize` and `DequantizeLinear`; written as ONNX these are the QDQ pairs that ONNX Runtime
and TensorRT turn into int8 arithmetic. Gradients go straight through the rounding, so the backward needs no more
residuals than before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.export.adaptable import AdaptableModel
from edgetta.export.batch_norm import EMA_MOMENTUM, Frozen
from edgetta.segments.graph import Graph, GraphBuilder, Node
from edgetta.segments.torch_engine import Program

Range = float | list[float]
Ranges = Mapping[str, Mapping[str, Range]]
"""Largest magnitude that int8 stands for, of a value or of each of its channels: name of a piece (or "source") -> name
of the value -> range."""

_SHARES = torch.linspace(0.3, 1.0, 36)  # of the largest magnitude, tried as the range
_SAMPLE = 1 << 14  # magnitudes per range and batch that it is chosen on
_CHANNEL_SAMPLE = 1 << 11
_TINY = 1e-8  # range of what is zero on all images


def measure_ranges(model: AdaptableModel, batches: Iterable[Tensor]) -> dict[str, dict[str, Range]]:
    """The range of every value that quantisation rounds, on source images (N, C, H, W) in [0, 1].

    The float network runs with the running statistics of its training, part after part without meta-networks.
    Raises `UsageError` where there are no images, or no convolution and no matrix product with weights.
    """
    forwards = {name: piece.graph for name, piece in model.pieces.items()} | {"source": model.source}
    watched = {name: _roundings(graph) for name, graph in forwards.items()}
    if not any(watched.values()):
        raise UsageError("int8 rounds convolutions and linear layers, and this network has none")
    samples: dict[str, list[list[Tensor]]] = {name: [[] for _ in found] for name, found in watched.items()}
    programs = {name: _program(graph, watched[name]) for name, graph in forwards.items()}
    count = 0
    for images in batches:
        count += len(images)
        x = images
        for name, piece in model.pieces.items():
            x, *values = programs[name].run(_inputs(piece, x))
            _collect(samples[name], watched[name], values)
        _, *values = programs["source"].run({"x": images})
        _collect(samples["source"], watched["source"], values)
    if not count:
        raise UsageError("int8 needs source images to choose its ranges on; give some")
    return {
        name: {at.value: _range(found, at) for at, found in zip(watched[name], samples[name], strict=True)}
        for name in watched
    }


def quantise(graph: Graph, ranges: Mapping[str, Range]) -> Graph:
    """The graph with its convolutions and matrix products in int8. Raises `UsageError` where a range is missing."""
    builder = GraphBuilder("q")
    builder.values, builder.constants, builder.inputs = dict(graph.values), dict(graph.constants), list(graph.inputs)
    renamed: dict[str, str] = {}
    rounded: dict[str, str] = {}

    def range_of(name: str) -> Range:
        if name not in ranges:
            raise UsageError(f"there is no range for {name!r}; calibrate this network with this version of edgetta")
        return ranges[name]

    def round_(name: str, key: str, largest: float) -> str:
        if name not in rounded:
            scale = torch.tensor(max(largest, _TINY) / 127)
            rounded[name] = builder.emit("FakeQuantize", name, builder.constant(f"{key}.scale", scale))
        return rounded[name]

    for node in graph.nodes:
        inputs = [renamed.get(name, name) for name in node.inputs]
        if not _quantised(node, graph):
            builder.nodes.append(replace(node, inputs=tuple(inputs)))
            continue
        read, made = range_of(node.inputs[0]), range_of(node.output)
        # A value may have a range per channel where it was made; where it is read, one must do.
        inputs[0] = round_(inputs[0], node.inputs[0], max(read) if isinstance(read, list) else read)
        each = None if isinstance(made, float) else torch.tensor(made).clamp_min(_TINY)
        inputs[1] = _weight(builder, node.inputs[1], graph.constants[node.inputs[1]], _output_axis(node), each)
        if each is not None and len(inputs) > 2 and inputs[2]:
            bias = graph.constants[node.inputs[2]].float() / each
            inputs[2] = builder.constant(f"{node.inputs[2]}.even", bias)
        builder.nodes.append(replace(node, inputs=tuple(inputs)))
        if isinstance(made, float):
            renamed[node.output] = round_(node.output, node.output, made)
            continue
        even = builder.emit(
            "FakeQuantize", node.output, builder.constant(f"{node.output}.scale", torch.tensor(1 / 127))
        )
        sizes = builder.constant(f"{node.output}.sizes", each.reshape(1, -1, 1, 1))  # type: ignore[union-attr]
        renamed[node.output] = builder.emit("Mul", even, sizes)
    return builder.graph([renamed.get(name, name) for name in graph.outputs])


@dataclass(frozen=True)
class _Rounding:
    """A value that is rounded, the value whose magnitudes count, and whether each channel has its own range."""

    value: str
    measured: str
    by_channel: bool = False


def _roundings(graph: Graph) -> list[_Rounding]:
    """Every value that is rounded, once, in order."""
    readers = graph.consumers()
    found: dict[str, _Rounding] = {}
    for node in graph.nodes:
        if not _quantised(node, graph):
            continue
        found.setdefault(node.inputs[0], _Rounding(node.inputs[0], node.inputs[0]))
        after = [] if node.output in graph.outputs else readers.get(node.output, [])
        gates = [n for n in after if n.op == "Relu" or (n.op == "Clip" and n.attributes["min"] == 0)]
        if after and len(gates) == len(after):
            found[node.output] = _Rounding(node.output, gates[0].output)
        else:
            normalised = node.op == "Conv" and any(n.op == "BatchNormalization" for n in after)
            found[node.output] = _Rounding(node.output, node.output, normalised)
    return list(found.values())


def _quantised(node: Node, graph: Graph) -> bool:
    """Convolutions and matrix products whose second operand, and no other, is a weight."""
    if node.op not in ("Conv", "MatMul") or node.inputs[0] in graph.constants:
        return False
    weight = graph.constants.get(node.inputs[1])
    return weight is not None and weight.dim() == (4 if node.op == "Conv" else 2)


def _output_axis(node: Node) -> int:
    return 0 if node.op == "Conv" else 1


def _weight(builder: GraphBuilder, name: str, weight: Tensor, axis: int, each: Tensor | None) -> str:
    """int8 codes and one scale per output channel, as a value of the graph; outputs are divided by `each` (C,)."""
    others = [i for i in range(weight.dim()) if i != axis]
    scale = weight.abs().amax(others).clamp_min(_TINY).float() / 127
    column = [1] * weight.dim()
    column[axis] = -1
    codes = (weight.float() / scale.reshape(column)).round().clamp(-127, 127).to(torch.int8)
    scale = scale if each is None else scale / each
    stored = builder.constant(f"{name}.int8", codes), builder.constant(f"{name}.scale", scale)
    return builder.emit("DequantizeLinear", *stored, axis=axis)


def _program(graph: Graph, watched: list[_Rounding]) -> Program:
    """Runs a graph for its first output and the values whose magnitudes count."""
    outputs = (graph.outputs[0], *(at.measured for at in watched))
    return Program(Graph(graph.inputs, outputs, graph.nodes, graph.values, graph.constants).pruned())


def _inputs(piece: Frozen, x: Tensor) -> dict[str, Tensor]:
    momentum = {EMA_MOMENTUM: torch.zeros(1)} if piece.state else {}
    return {"x": x, **piece.initial_state, **piece.initial_affine, **momentum}


def _collect(samples: list[list[Tensor]], watched: list[_Rounding], values: list[Tensor]) -> None:
    """Keep magnitudes spread over each value, as (ranges, count); what is so rare that they miss it is clipped."""
    for kept, at, value in zip(samples, watched, values, strict=True):
        rows = value.transpose(0, 1).flatten(1) if at.by_channel else value.reshape(1, -1)
        most = _CHANNEL_SAMPLE if at.by_channel else _SAMPLE
        kept.append(rows[:, :: max(1, rows.shape[1] // most)][:, :most].float().abs())


def _range(found: list[Tensor], at: _Rounding) -> Range:
    """The range with the least squared error of rounding and clipping among shares of the largest magnitude."""
    values = torch.cat(found, 1).double()
    largest = values.amax(1).clamp_min(_TINY)
    errors = []
    for share in _SHARES.double():
        scale = (share * largest / 127)[:, None]
        errors.append(((values / scale).round().clamp(max=127) * scale - values).square().mean(1))
    ranges = [float(r) for r in _SHARES.double()[torch.stack(errors).argmin(0)] * largest]
    return ranges if at.by_channel else ranges[0]
