"""What running a graph once may take at most: a bundle from elsewhere must not exhaust the machine that looks at it.

Everything is counted from the shapes alone, before a weight is read by an engine or a session is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgetta.segments.graph import Graph, Node
from edgetta.segments.shapes import per_image

MAX_NODES = 30_000
MAX_ELEMENTS = 1 << 26
"""Of one value, per image: 256 MiB."""

MAX_LIVE_ELEMENTS = 1 << 29
"""Of all values that are needed at one time, per image: 2 GiB."""

MAX_OPERATIONS = 1 << 42
"""Multiplications and additions of one run, per image: forty times those of a ViT-L with images of 384 x 384."""

MAX_NAME = 200
_MAX_RANK = 8
_MAX_LIST = 16  # numbers in one attribute
_MAX_NUMBER = 1 << 40


def check_sizes(nodes: int, values: int, constants: int) -> None:
    """Before anything is made of a graph's JSON. Raises `ValueError`."""
    if nodes > MAX_NODES or values > 2 * MAX_NODES or constants > 2 * MAX_NODES:
        raise ValueError(f"it has {nodes} nodes and {values} values, and at most {MAX_NODES} nodes are read")


def check_limits(graph: Graph) -> None:
    """Raise `ValueError` for a graph with idle nodes, or one that would take more than any network that edgetta runs.

    graph   well-formed, as `Graph.from_json` makes it
    """
    _check_names(graph)
    for node in graph.nodes:
        _check_attributes(node)
    elements: dict[str, int] = {}
    for name, value in graph.values.items():
        sizes = per_image(value.shape)  # attention moves the batch behind its heads, or merges both
        free = sum(size < 0 for size in value.shape)
        elements[name] = math.prod(sizes)
        large = len(value.shape) > _MAX_RANK or elements[name] > MAX_ELEMENTS
        if large or free > 1 or any(size < 1 for size in sizes):
            raise ValueError(f"value {value.name!r} has shape {value.shape}")
    last = _last_uses(graph)
    idle = next((node.output for node in graph.nodes if node.output not in last), None)
    if idle is not None:
        raise ValueError(f"nothing needs {idle!r}, which it computes")
    live = sum(elements[name] for name in graph.inputs)
    operations = 0
    freed: dict[int, int] = {}
    for name, at in last.items():
        if name in elements:
            freed[at] = freed.get(at, 0) + elements[name]
    for at, node in enumerate(graph.nodes):
        live += elements[node.output]
        operations += _operations(node, graph, elements)
        if live > MAX_LIVE_ELEMENTS:
            raise ValueError(f"it needs more than {MAX_LIVE_ELEMENTS} numbers per image at {node.output!r}")
        live -= freed.get(at, 0)
    if operations > MAX_OPERATIONS:
        raise ValueError(f"it takes more than {MAX_OPERATIONS} operations per image")


def _last_uses(graph: Graph) -> dict[str, int]:
    """The node that a value is needed by last; outputs are needed to the end. Values that no output needs are not in
    it."""
    last = dict.fromkeys(graph.outputs, len(graph.nodes))
    for at in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[at]
        if node.output in last:
            for name in node.inputs:
                last.setdefault(name, at)
    return last


def _operations(node: Node, graph: Graph, elements: Mapping[str, int]) -> int:
    made = elements[node.output]
    if node.op in ("Conv", "ConvTranspose"):
        per_channel = math.prod(_shape(graph, node.inputs[1])[1:])
        source = node.inputs[0] if node.op == "ConvTranspose" else node.output
        return elements.get(source, 0) * per_channel
    if node.op == "ConvWeightGradient":
        return made * math.prod(_shape(graph, node.inputs[1])[2:])
    if node.op == "MatMul":
        return made * _shape(graph, node.inputs[0])[-1]
    if node.op in ("MaxPool", "AveragePool"):
        return made * math.prod(node.attributes["kernel_shape"])
    return max(made, *(elements.get(name, 0) for name in node.inputs))


def _shape(graph: Graph, name: str) -> tuple[int, ...]:
    if name in graph.values:
        return graph.values[name].shape
    return tuple(graph.constants[name].shape)


def _check_names(graph: Graph) -> None:
    for name in (*graph.values, *graph.constants):
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise ValueError(f"{name[:60]!r} is no name of a value")


def _check_attributes(node: Node) -> None:
    attributes: Mapping[str, object] = node.attributes
    for name, value in attributes.items():
        numbers = list(value) if isinstance(value, list | tuple) else [value]
        if len(numbers) > _MAX_LIST or any(not isinstance(n, int | float) or abs(n) > _MAX_NUMBER for n in numbers):
            limit = isinstance(value, float) and name in ("min", "max", "value")  # LARGEST stands for infinity
            if not limit:
                raise ValueError(f"attribute {name!r} of {node.output!r} is beyond any that edgetta writes")
