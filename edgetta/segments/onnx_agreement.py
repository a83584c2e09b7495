"""What runs is what was checked: an ONNX model must be its graph, node by node, or it is refused.

A graph's operators, attributes and shapes are checked when it is read (`graph.py`, `shapes.py`). An engine runs the
ONNX model beside it, so that a node which the graph lacks would run unchecked. Here there is none: the model has to be
equal to what `onnx_spelling.py` makes of the graph, in every node, attribute, weight, input and output.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from edgetta.segments.onnx_model import OnnxModel, OnnxNode, parse_onnx
from edgetta.segments.onnx_spelling import OPSET, spelled

if TYPE_CHECKING:
    from edgetta.segments.graph import Graph

NEWEST_OPSET = 24
"""Of those that the exporter can write."""

_PER_WEIGHT = 300  # bytes that say in which file a weight lies
_AROUND = 1 << 16  # bytes of what stands around a graph


def read_agreeing(data: bytes, graph: Graph, rewritten: Callable[[OnnxModel], OnnxModel] | None = None) -> OnnxModel:
    """The model in the ONNX file `data`, which must be `graph` and nothing else; its weights are the graph's arrays.

    The file is no larger than the graph makes it before anything in it is read; see `check_agreement`.
    Raises `ValueError`.
    """
    expected = spelled(graph)
    own = {name: expected.weights[name] for name in graph.constants}
    largest = 2 * len(expected.to_bytes(without=own)) + _PER_WEIGHT * len(own) + _AROUND
    if len(data) > largest:
        raise ValueError(f"it has {len(data)} bytes, and its graph needs no more than {largest}")
    model = parse_onnx(data, None, own)
    check_agreement(graph, model, rewritten)
    return model


def check_agreement(graph: Graph, model: OnnxModel, rewritten: Callable[[OnnxModel], OnnxModel] | None = None) -> None:
    """Raise `ValueError`, naming the first difference, unless `model` is `graph` and nothing else.

    graph       checked, by `Graph.from_json`
    model       as `parse_onnx` reads it
    rewritten   what the exporter did to the spelled model before it wrote it (an order or a layout for an engine)
    """
    if not OPSET <= model.opset <= NEWEST_OPSET:
        raise ValueError(f"it is of opset {model.opset}, and those from {OPSET} to {NEWEST_OPSET} are read")
    expected = spelled(graph, model.opset)
    if rewritten is not None:
        expected = rewritten(expected)
    if model.inputs != expected.inputs or model.outputs != expected.outputs:
        what = "inputs" if model.inputs != expected.inputs else "outputs"
        raise ValueError(f"its {what} are not those of its graph")
    for number, (node, due) in enumerate(zip_longest(model.nodes, expected.nodes)):
        if node != due:
            raise ValueError(f"its node {number} {_difference(node, due)}")
    for name in sorted(set(model.weights) ^ set(expected.weights)):
        where = "not in its graph" if name in model.weights else "missing"
        raise ValueError(f"its weight {name[:60]!r} is {where}")
    for name, array in expected.weights.items():
        if not _equal(model.weights[name], array):
            raise ValueError(f"its weight {name[:60]!r} is not that of its graph")


def _difference(node: OnnxNode | None, due: OnnxNode | None) -> str:
    if due is None or node is None:
        return "is one that its graph does not have" if node is not None else "is missing"
    if (node.op, node.outputs) != (due.op, due.outputs):
        return f"is {node.op[:40]!r} where its graph has {due.op!r}"
    part = "inputs" if node.inputs != due.inputs else "attributes" if node.attributes != due.attributes else "name"
    return f"({node.op}) has other {part} than in its graph"


def _equal(found: np.ndarray, due: np.ndarray) -> bool:
    """Bit by bit: NaN is equal to itself, and 0 is not -0."""
    if (found.shape, found.dtype) != (due.shape, due.dtype):
        return False
    same_memory = found.ctypes.data == due.ctypes.data and found.strides == due.strides
    return same_memory or found.tobytes() == due.tobytes()
