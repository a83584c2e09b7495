"""A frozen computation as plain data: nodes named after ONNX operators, with constants beside them.

One `Graph` serves every engine. The torch engine runs it node by node, `edgetta.export.onnx_writer` writes it as ONNX
for ONNX Runtime and TensorRT. One dimension of every activation is the batch and is written `BATCH`, the first but
inside attention; all other dimensions are fixed when the graph is made.

Constants are torch tensors where graphs are made, and numpy arrays on a device without torch: nothing here imports
torch but what needs a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.errors import BundleError
from edgetta.segments.shapes import BATCH, KNOWN, Kind, infer, with_batch

if TYPE_CHECKING:
    import torch

LARGEST = 3.0e38
"""Stands for infinity, which not every engine takes: nearly the largest number of float32."""
_MAX_NODES = 100_000


@dataclass(frozen=True)
class Value:
    """Name, shape (`BATCH`, or a multiple, in place of the batch) and dtype ("float" or "bool") of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float"

    def with_batch(self, batch: int) -> tuple[int, ...]:
        return with_batch(self.shape, batch)

    def elements(self, batch: int) -> int:
        count = 1
        for size in self.with_batch(batch):
            count *= size
        return count

    @property
    def per_sample(self) -> bool:
        return min(self.shape, default=0) < 0


@dataclass(frozen=True)
class Node:
    """One operator with one output. An optional input that is absent is the empty string, as in ONNX."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order.

    `values` describes every input and every node's output; `constants` holds the weights by name.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Any]

    @property
    def quantised(self) -> bool:
        """Whether any of it runs in int8."""
        return any(node.op == "FakeQuantize" for node in self.nodes)

    def producers(self) -> dict[str, Node]:
        return {node.output: node for node in self.nodes}

    def consumers(self) -> dict[str, list[Node]]:
        uses: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                uses.setdefault(name, []).append(node)
        return uses

    def pruned(self) -> Graph:
        """The same graph without nodes, values and constants that no output depends on."""
        needed = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if node.output in needed:
                kept.append(node)
                needed.update(node.inputs)
        constants = {name: tensor for name, tensor in self.constants.items() if name in needed}
        values = {name: value for name, value in self.values.items() if name in needed or name in self.inputs}
        return Graph(self.inputs, self.outputs, tuple(reversed(kept)), values, constants)

    def to(self, dtype: torch.dtype) -> Graph:
        """The same graph with floating-point constants in `dtype`."""
        constants = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.constants.items()}
        return Graph(self.inputs, self.outputs, self.nodes, self.values, constants)

    def to_json(self) -> dict[str, Any]:
        """Structure without the constants, as JSON-compatible data."""
        return {
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "constants": sorted(self.constants),
            "values": [[v.name, list(v.shape), v.dtype] for v in self.values.values()],
            "nodes": [[n.op, list(n.inputs), n.output, dict(n.attributes)] for n in self.nodes],
        }

    @staticmethod
    def from_json(data: Any, constants: Mapping[str, Any]) -> Graph:
        """Rebuild a graph from `to_json` data; raises `BundleError` for anything that is not a well-formed graph.

        Every operator, attribute and shape is checked, by inferring each node's shape from those before it.
        """
        try:
            values = {
                str(name): Value(str(name), tuple(int(size) for size in shape), str(dtype))
                for name, shape, dtype in data["values"]
            }
            nodes = tuple(
                Node(str(op), tuple(map(str, inputs)), str(output), dict(attributes))
                for op, inputs, output, attributes in data["nodes"]
            )
            weights = {str(name): constants[str(name)] for name in data["constants"]}
            graph = Graph(tuple(map(str, data["inputs"])), tuple(map(str, data["outputs"])), nodes, values, weights)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"a graph in the bundle is malformed ({error!r}); export the bundle again") from error
        _check(graph)
        return graph


class GraphBuilder:
    """Collects nodes, infers each output's shape and makes names unique."""

    def __init__(self, prefix: str = "v") -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Any] = {}
        self.inputs: list[str] = []
        self._prefix = prefix
        self._count = 0
        self._made: dict[Any, str] | None = None

    @staticmethod
    def of(graph: Graph, prefix: str) -> GraphBuilder:
        """A builder that continues `graph`; new values are named with `prefix`."""
        builder = GraphBuilder(prefix)
        builder.nodes = list(graph.nodes)
        builder.values = dict(graph.values)
        builder.constants = dict(graph.constants)
        builder.inputs = list(graph.inputs)
        return builder

    def sharing(self) -> GraphBuilder:
        """From now on the same operator on the same values is one node."""
        self._made = {}
        return self

    def input(self, name: str, shape: Sequence[int], dtype: str = "float") -> str:
        self.values[name] = Value(name, tuple(shape), dtype)
        self.inputs.append(name)
        return name

    def constant(self, name: str, tensor: torch.Tensor) -> str:
        """Register a weight and return its name; the same name with the same content is stored once."""
        tensor = tensor.detach()
        unique, count = name, 0
        while unique in self.values or (unique in self.constants and not _same(self.constants[unique], tensor)):
            count += 1
            unique = f"{name}.{count}"
        self.constants[unique] = tensor.contiguous()
        return unique

    def scalar(self, number: float) -> str:
        """A number as a constant, in float64 so that no engine sees it rounded twice."""
        import torch

        return self.constant(f"scalar.{number!r}", torch.tensor(float(number), dtype=torch.float64))

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        key = (op, inputs, json.dumps(attributes, sort_keys=True)) if self._made is not None else None
        if self._made is not None and key in self._made:
            return self._made[key]
        name = ""
        while not name or name in self.values or name in self.constants:
            self._count += 1
            name = f"{self._prefix}{self._count}"
        shape, dtype = infer(op, [self._kind(name) for name in inputs], attributes)
        self.values[name] = Value(name, shape, dtype)
        self.nodes.append(Node(op, tuple(inputs), name, attributes))
        if self._made is not None:
            self._made[key] = name
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return tuple(self.constants[name].shape)
        return self.values[name].shape

    def graph(self, outputs: Iterable[str], lent: Collection[str] = ()) -> Graph:
        """The graph of `outputs`. One that is an input, a constant, or given already is copied to a value of its own.

        An engine that is given memory for each output would leave such a one unwritten. Inputs in `lent` may be
        outputs as they are: nobody takes them from the engine.
        """
        own: list[str] = []
        for name in outputs:
            taken = name in own or name in self.constants or (name in self.inputs and name not in lent)
            own.append(self.emit("Identity", name) if taken else name)
        return Graph(tuple(self.inputs), tuple(own), tuple(self.nodes), self.values, self.constants).pruned()

    def _kind(self, name: str) -> Kind | None:
        return _kind(self.constants[name] if name in self.constants else self.values[name]) if name else None


def reshaping(source: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The attribute of the Reshape from one shape to another: 0 copies the batch, -1 is where it goes otherwise."""
    same = [size < 0 and i < len(source) and source[i] == size for i, size in enumerate(shape)]
    return [0 if same[i] else max(size, BATCH) for i, size in enumerate(shape)]


def _kind(operand: Any) -> Kind:
    """Shape and dtype of a value, or of a constant, a tensor or an array."""
    if isinstance(operand, Value):
        return operand.shape, operand.dtype
    name = str(operand.dtype).rpartition(".")[2]
    return tuple(operand.shape), name if name in ("bool", "int8") else "float"


def _check(graph: Graph) -> None:
    """Raise `BundleError` unless the nodes are in order, known, and give the shapes that the graph declares."""
    if len(graph.nodes) > _MAX_NODES:
        raise BundleError(f"a graph in the bundle has {len(graph.nodes)} nodes, more than the {_MAX_NODES} allowed")
    for value in graph.values.values():
        if value.dtype not in ("float", "bool") or sum(size < 0 for size in value.shape) > 1:
            raise BundleError(f"a graph in the bundle declares {value.name!r} wrongly; export the bundle again")
    if any(name not in graph.values or name in graph.constants or not name for name in graph.inputs):
        raise BundleError("a graph in the bundle has an undefined input; export the bundle again")
    known: dict[str, Kind | None] = {"": None}
    known |= {name: _kind(tensor) for name, tensor in graph.constants.items()}
    known |= {name: _kind(graph.values[name]) for name in graph.inputs}
    for node in graph.nodes:
        if node.op not in KNOWN:
            raise BundleError(f"the bundle uses operator {node.op!r}, which this edgetta does not know; update it")
        if node.output in known or node.output not in graph.values or any(name not in known for name in node.inputs):
            raise BundleError(f"a graph in the bundle is malformed at {node.output!r}; export the bundle again")
        value = graph.values[node.output]
        try:
            inferred = infer(node.op, [known[name] for name in node.inputs], node.attributes)
        except ValueError as error:
            raise BundleError(
                f"a graph in the bundle is malformed: {node.op} cannot make {node.output!r} ({error}); "
                "export the bundle again"
            ) from error
        if inferred != _kind(value):
            raise BundleError(
                f"a graph in the bundle declares {node.output!r} as {value.dtype} {value.shape}, but {node.op} makes "
                f"{inferred[1]} {inferred[0]}; export the bundle again"
            )
        known[node.output] = inferred
    if any(name not in known or not name for name in graph.outputs):
        raise BundleError("a graph in the bundle has an undefined output; export the bundle again")


def load_graph(text: str, constants: Mapping[str, Any]) -> Graph:
    """Parse the JSON text of a graph; raises `BundleError` when it is not one."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise BundleError(f"a graph in the bundle is not JSON ({error}); export the bundle again") from error
    return Graph.from_json(data, constants)


def _same(a: Any, b: Any) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b))
