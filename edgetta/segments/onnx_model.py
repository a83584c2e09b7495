"""An ONNX file as data that can be changed and written again, without the onnx package, which no device has.

A model read here carries its weights with it. So TensorRT never has to look for the file that they lie in, and the
SHA-256 of what is written names everything that an engine is made from. ONNX Runtime is given weights that are in
memory already, one copy for all graphs of a segment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.errors import BundleError, one_line
from edgetta.protobuf import fields, message, number, numbers, write_bytes, write_number, write_real

FLOAT, INT8, INT64, BOOL, HALF = 1, 3, 7, 9, 10
"""Element types, as ONNX numbers them."""

_TYPES: dict[int, Any] = {FLOAT: np.float32, INT8: np.int8, INT64: np.int64, BOOL: np.bool_, HALF: np.float16}
_REAL, _INT, _TEXT, _REALS, _INTS = 1, 2, 3, 6, 7  # of AttributeProto.type
_EXTERNAL = 1  # of TensorProto.data_location


@dataclass(frozen=True)
class OnnxNode:
    """One operator. `attributes` are AttributeProto messages by name, as they were read."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, bytes] = field(default_factory=dict)
    domain: str = ""

    def integer(self, attribute: str) -> int:
        """The value of an attribute that is one whole number; raises `ValueError` where it is absent."""
        for key, value in fields(memoryview(self.attributes.get(attribute, b""))):
            if key == 3:
                return number(value)
        raise ValueError(f"{self.op} has no attribute {attribute!r}")

    def to_bytes(self) -> bytes:
        """The NodeProto."""
        parts = [write_bytes(1, name) for name in self.inputs] + [write_bytes(2, name) for name in self.outputs]
        parts += [write_bytes(3, self.name), write_bytes(4, self.op)]
        parts += [write_bytes(5, content) for content in self.attributes.values()]
        return b"".join(parts + ([write_bytes(7, self.domain)] if self.domain else []))


@dataclass(frozen=True)
class OnnxValue:
    """An input or output: name, element type, and shape with None where it is the batch."""

    name: str
    kind: int
    shape: tuple[int | None, ...]

    @property
    def per_sample(self) -> bool:
        return None in self.shape


@dataclass(frozen=True)
class OnnxModel:
    """Nodes in topological order, weights by name, inputs and outputs in order."""

    nodes: tuple[OnnxNode, ...]
    weights: dict[str, np.ndarray[Any, Any]]
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    opset: int
    ir_version: int

    def to_bytes(self, without: Collection[str] = ()) -> bytes:
        """The model as an ONNX file that holds its weights, but for those named in `without`: whoever reads it has
        them from elsewhere."""
        parts = [write_bytes(1, node.to_bytes()) for node in self.nodes]
        parts.append(write_bytes(2, "edgetta"))
        parts += [write_bytes(5, _weight_bytes(n, array, n not in without)) for n, array in self.weights.items()]
        parts += [write_bytes(11, _value_bytes(value)) for value in self.inputs]
        parts += [write_bytes(12, _value_bytes(value)) for value in self.outputs]
        graph = b"".join(parts)
        opsets = [write_bytes(8, write_bytes(1, "") + write_number(2, self.opset))]
        others = sorted({node.domain for node in self.nodes if node.domain})
        opsets += [write_bytes(8, write_bytes(1, domain) + write_number(2, 1)) for domain in others]
        head = write_number(1, self.ir_version) + write_bytes(2, "edgetta")
        return head + write_bytes(7, graph) + b"".join(opsets)

    def only(self, outputs: Collection[str]) -> OnnxModel:
        """The same model with these outputs alone, and without what they do not need."""
        needed = set(outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        return replace(
            self,
            nodes=tuple(reversed(kept)),
            weights={name: array for name, array in self.weights.items() if name in needed},
            inputs=tuple(value for value in self.inputs if value.name in needed),
            outputs=tuple(value for value in self.outputs if value.name in outputs),
        )


def read_onnx(path: Path) -> OnnxModel:
    """The model in the file at `path`, with the weights that lie in another file of the same folder.

    Meant for files of a bundle, which `edgetta.bundle` has checked. Raises `BundleError` for what cannot be read.
    """
    try:
        return parse_onnx(path.read_bytes(), path.parent)
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} cannot be read as ONNX: {one_line(error)}; export the bundle again") from error


def parse_onnx(
    data: bytes, folder: Path | None = None, weights: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> OnnxModel:
    """The model in `data`; weights that lie in other files are looked for in `folder`, unless they are in `weights`.

    Without a folder no other file is read. Raises `ValueError`, and `OSError` of such a file.
    """
    try:
        return _model(memoryview(data), folder, weights or {})
    except (IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"it is malformed ({one_line(error)})") from error


def cast(source: str, target: str, kind: int) -> OnnxNode:
    """A node that converts `source` to the element type `kind` as `target`."""
    return OnnxNode("Cast", f"Cast_{target}", (source,), (target,), {"to": integer("to", kind)})


def integer(name: str, value: int) -> bytes:
    """An attribute that is one whole number, as a node holds it."""
    return write_bytes(1, name) + write_number(3, value) + write_number(20, _INT)


def text(name: str, value: str) -> bytes:
    """An attribute that is a text, as a node holds it."""
    return write_bytes(1, name) + write_bytes(4, value) + write_number(20, _TEXT)


def reals(name: str, values: Sequence[float]) -> bytes:
    """An attribute that is a list of real numbers, as a node holds it."""
    return write_bytes(1, name) + b"".join(write_real(7, value) for value in values) + write_number(20, _REALS)


def attribute(name: str, value: float | Sequence[int]) -> bytes:
    """An attribute that is a whole number, a real one or a list of whole ones, as a node holds it: the bytes that the
    onnx package writes, too. Raises `TypeError` or `ValueError` for anything else."""
    if isinstance(value, list | tuple):
        return write_bytes(1, name) + b"".join(write_number(8, int(n)) for n in value) + write_number(20, _INTS)
    if isinstance(value, int):
        return integer(name, value)
    if not isinstance(value, float):
        raise TypeError(f"attribute {name!r} is a {type(value).__name__}")
    return write_bytes(1, name) + write_real(2, value) + write_number(20, _REAL)


def _model(data: memoryview, folder: Path | None, known: Mapping[str, np.ndarray[Any, Any]]) -> OnnxModel:
    opset, ir_version, graph = 0, 0, None
    for key, value in fields(data):
        if key == 1:
            ir_version = number(value)
        elif key == 7:
            graph = message(value)
        elif key == 8:
            opset = max(opset, *(number(v) for k, v in fields(message(value)) if k == 2), 0)
    if graph is None or not opset:
        raise ValueError("it is not an ONNX model")
    nodes, weights, inputs, outputs = [], {}, [], []
    for key, value in fields(graph):
        if key == 1:
            nodes.append(_node(message(value)))
        elif key == 5:
            name, array = _weight(message(value), folder, known)
            if name in weights:
                raise ValueError(f"weight {name!r} occurs twice")
            weights[name] = array
        elif key == 11:
            inputs.append(_value(message(value)))
        elif key == 12:
            outputs.append(_value(message(value)))
    return OnnxModel(tuple(nodes), weights, tuple(inputs), tuple(outputs), opset, ir_version)


def _node(data: memoryview) -> OnnxNode:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
    attributes = {}
    for key, value in fields(data):
        if key in texts:
            texts[key].append(_text(value))
        elif key == 5:
            content = message(value)
            name = _text(_last(content, 1))
            if not name or name in attributes:
                raise ValueError("an attribute has no name of its own")
            attributes[name] = bytes(content)
    return OnnxNode(texts[4][-1], texts[3][-1], tuple(texts[1]), tuple(texts[2]), attributes)


def _weight(
    data: memoryview, folder: Path | None, known: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[str, np.ndarray[Any, Any]]:
    name, kind = "", 0
    sizes: list[int] = []
    raw: memoryview | None = None
    place: dict[str, str] = {}
    for key, value in fields(data):
        if key == 1:
            sizes += numbers(value)
        elif key == 2:
            kind = number(value)
        elif key == 8:
            name = _text(value)
        elif key == 9:
            raw = message(value)
        elif key == 13:
            entry = {k: _text(v) for k, v in fields(message(value))}
            place[entry[1]] = entry[2]
    dtype = np.dtype(_TYPES[kind]).newbyteorder("<")
    if name in known:
        if (known[name].shape, known[name].dtype) != (tuple(sizes), dtype):
            raise ValueError(f"weight {name!r} is not what its graph says")
        return name, known[name]
    if place:
        if folder is None:
            raise ValueError(f"weight {name!r} lies in another file")
        offset, length = int(place["offset"]), int(place["length"])
        raw = memoryview(np.fromfile(folder / place["location"], np.uint8, length, offset=offset).data)
    if raw is None:
        raise ValueError(f"weight {name!r} holds no raw data")
    return name, np.frombuffer(raw, dtype).reshape(sizes)


def _value(data: memoryview) -> OnnxValue:
    name, kind = "", 0
    shape: list[int | None] = []
    for key, value in fields(data):
        if key == 1:
            name = _text(value)
        for tensor in _all(value, 1) if key == 2 else ():
            kind = next((number(v) for k, v in fields(tensor) if k == 1), 0)
            for dimensions in _all(tensor, 2):
                for dimension in _all(dimensions, 1):
                    shape.append(next((number(v) for k, v in fields(dimension) if k == 1), None))
    return OnnxValue(name, kind, tuple(shape))


def _last(content: memoryview, wanted: int) -> int | memoryview:
    """The last of the fields of that number, which is the one that counts; raises `ValueError` where there is none."""
    found = [value for number, value in fields(content) if number == wanted]
    if not found:
        raise ValueError("it is not an ONNX model")
    return found[-1]


def _all(value: int | memoryview, wanted: int) -> Iterator[memoryview]:
    return (message(v) for k, v in fields(message(value)) if k == wanted)


def _text(value: int | memoryview) -> str:
    return bytes(message(value)).decode()


def _weight_bytes(name: str, array: np.ndarray[Any, Any], inside: bool = True) -> bytes:
    kind = next(kind for kind, dtype in _TYPES.items() if np.dtype(dtype) == array.dtype.newbyteorder("="))
    parts = [write_number(1, size) for size in array.shape] + [write_number(2, kind), write_bytes(8, name)]
    if not inside:
        place = write_bytes(1, "location") + write_bytes(2, "elsewhere")
        return b"".join([*parts, write_bytes(13, place), write_number(14, _EXTERNAL)])
    return b"".join([*parts, write_bytes(9, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())])


def _value_bytes(value: OnnxValue) -> bytes:
    sizes = (write_bytes(2, "batch") if size is None else write_number(1, size) for size in value.shape)
    shape = b"".join(write_bytes(1, size) for size in sizes)
    return write_bytes(1, value.name) + write_bytes(
        2, write_bytes(1, write_number(1, value.kind) + write_bytes(2, shape))
    )
