"""The same ONNX model, written so that ONNX Runtime holds less while it runs it.

A session frees a value once the last operator that reads it has run; where that never runs, or runs at the end, it
holds the value to the end. And no operator gives the variance of a channel: spelled out it takes two more tensors of
the size of its input, more than anything else in a segment whose statistics follow the batch.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import OnnxModel, OnnxNode, integer

GATHERS_SLICES = "GatherSliceToSplitFusion"
"""An optimisation of ONNX Runtime that makes all pieces of a value at once."""

PIECES = 4
"""A variance is taken of so many groups of channels, one after the other."""

_LARGE = 1 << 15
"""Elements of one image from which that pays."""


def freeing_early(model: OnnxModel) -> OnnxModel:
    """The same model in an order of execution that holds no value longer than needed.

    Of the operators that nothing reads from, ONNX Runtime takes the last of the file first, with all that it needs;
    operators that its optimiser adds count as last. As a rule one of these ends in the first output: everything on its
    way runs, and only then what hangs beside it, such as the mask of each ReLU, for which all those values had to be
    held. So the first output leaves through one more operator, which the optimiser lets be; what hangs beside its way
    stands at the end of the file, and what is to come first stands last.
    """
    if len(model.outputs) == 1:
        return model
    made = {name: i for i, node in enumerate(model.nodes) for name in node.outputs}
    read = {name for node in model.nodes for name in node.inputs}
    first = model.outputs[0]
    hangs = [first.name not in node.outputs and not read.intersection(node.outputs) for node in model.nodes]
    beside = [node for node, alone in zip(model.nodes, hangs, strict=True) if alone]
    way = [node for node, alone in zip(model.nodes, hangs, strict=True) if not alone]
    beside.sort(key=lambda node: max((made.get(name, -1) for name in node.inputs), default=-1), reverse=True)
    renamed, shape = f"{first.name}.last", f"{first.name}.shape"
    leaving = OnnxNode("Reshape", f"Reshape_{renamed}", (first.name, shape), (renamed,))  # a zero: size as it is
    return replace(
        model,
        nodes=(*way, leaving, *beside),
        weights={**model.weights, shape: np.zeros(len(first.shape), np.int64)},
        outputs=(replace(first, name=renamed), *model.outputs[1:]),
    )


def what_waits_first(model: OnnxModel, source: str) -> OnnxModel:
    """The same model in which all that does not depend on the input `source` stands in front.

    Of what an operator reads, ONNX Runtime makes first what stands last in the file. So masks, for example, are made
    numbers of only when the gradient that they are for is there, and not all of them before the first.
    """
    reached = {source}
    for node in model.nodes:
        if reached.intersection(node.inputs):
            reached.update(node.outputs)
    return replace(model, nodes=tuple(sorted(model.nodes, key=lambda node: node.outputs[0] in reached)))  # stable


def beside_what_they_read(model: OnnxModel) -> OnnxModel:
    """The same model in which what the first output does not need comes directly behind the last value that it reads.

    A graph lists moments and masks behind all else; `freeing_early` goes by the places of nodes.
    """
    needed = {model.outputs[0].name}
    for node in reversed(model.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
    place: dict[str, int] = {}
    for i, node in enumerate(model.nodes):
        way = needed.intersection(node.outputs)
        at = i if way else max((place[name] for name in node.inputs if name in place), default=0)
        place.update(dict.fromkeys(node.outputs, at))
    return replace(model, nodes=tuple(sorted(model.nodes, key=lambda node: place[node.outputs[0]])))  # stable


def variances_in_pieces(model: OnnxModel, graph: Graph) -> OnnxModel:
    """The same model with the squares of centred values made, and averaged, for some channels at a time.

    graph   says how large values are, by name
    """
    made = {name: node for node in model.nodes for name in node.outputs}
    reads = Counter(name for node in model.nodes for name in node.inputs)
    nodes: dict[str, list[OnnxNode]] = {}  # what stands in for an operator, by its output
    weights: dict[str, np.ndarray] = {}
    for mean in model.nodes:
        square = made.get(mean.inputs[0]) if mean.op == "ReduceMean" else None
        if square is None or square.op != "Mul" or len({*square.inputs}) != 1:
            continue
        centred = made.get(square.inputs[0])
        if centred is None or centred.op != "Sub" or centred.inputs[0] not in graph.values:
            continue
        value = graph.values[centred.inputs[0]]
        column = made.get(centred.inputs[1])
        if column is None or column.op != "Reshape":
            continue
        alone = reads[centred.outputs[0]] == 2 and reads[square.outputs[0]] == 1
        if not alone or len(value.shape) < 3 or value.elements(1) < _LARGE or value.shape[1] < PIECES:
            continue
        pieces = _Pieces(centred, mean, value.shape[1])
        nodes |= {centred.outputs[0]: [], square.outputs[0]: [], mean.outputs[0]: pieces.nodes}
        weights |= pieces.weights
    return replace(
        model,
        nodes=tuple(new for node in model.nodes for new in nodes.get(node.outputs[0], [node])),
        weights={**model.weights, **weights},
    )


class _Pieces:
    """The mean of (x - column)^2 over the inner axes, (N, C), some channels at a time."""

    def __init__(self, centred: OnnxNode, mean: OnnxNode, channels: int) -> None:
        self.nodes: list[OnnxNode] = []
        self.weights: dict[str, np.ndarray] = {}
        x, column = centred.inputs
        self._prefix, parts = mean.outputs[0], []
        for number in range(PIECES):
            place = f"{number}.{PIECES}.{channels}"
            ends = (number * channels // PIECES, (number + 1) * channels // PIECES)
            images = self._slice(x, place, ends, 1)
            centre = self._slice(column, place, ends, 0)
            difference = self._add("Sub", f"centred.{number}", images, centre)
            square = self._add("Mul", f"square.{number}", difference, difference)
            part = f"{self._prefix}.mean.{number}"
            self.nodes.append(replace(mean, name=part, inputs=(square, *mean.inputs[1:]), outputs=(part,)))
            parts.append(part)
        self.nodes.append(
            OnnxNode("Concat", f"Concat_{self._prefix}", tuple(parts), mean.outputs, {"axis": integer("axis", 1)})
        )

    def _slice(self, source: str, place: str, ends: tuple[int, int], axis: int) -> str:
        names = []
        for name, number in (("first", ends[0]), ("last", ends[1]), (f"axis{axis}", axis)):
            names.append(f"piece.{name}.{place}")
            self.weights[names[-1]] = np.array([number], np.int64)
        return self._add("Slice", f"piece{axis}.{place}", source, *names)

    def _add(self, op: str, name: str, *inputs: str) -> str:
        output = f"{self._prefix}.{name}"
        self.nodes.append(OnnxNode(op, f"{op}_{output}", inputs, (output,)))
        return output
