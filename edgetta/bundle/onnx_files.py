"""What an ONNX file of a bundle points at, read from its bytes: the device has no onnx package, and needs none.

An ONNX file can name other files as the home of its weights. One in a bundle may name the segment's own tensor file
and nothing else, and may hold neither functions, sub-graphs nor operators of a foreign domain: edgetta writes none.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgetta.errors import BundleError
from edgetta.protobuf import fields, message

MAX_ONNX_BYTES = 64 << 20  # weights lie elsewhere
_EXTERNAL = 1

# Field numbers of onnx.proto.
_MODEL = {"graph": 7, "opset": 8, "training": 20, "functions": 25}
_GRAPH = {"node": 1, "initializer": 5, "input": 11, "output": 12, "sparse": 15}
_NODE = {"attribute": 5, "domain": 7}
_ATTRIBUTE = {"tensor": 5, "graph": 6, "tensors": 10, "graphs": 11, "sparse": 22, "sparses": 23}
_TENSOR = {"external": 13, "location": 14}


@dataclass(frozen=True)
class OnnxFile:
    """Names of the inputs and outputs of an ONNX file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def check_onnx(data: bytes, tensors: str, tensor_bytes: int, where: str) -> OnnxFile:
    """Check the bytes of an ONNX file whose weights may lie in the file called `tensors` of `tensor_bytes` bytes.

    Raises `BundleError` naming `where`: not ONNX, weights elsewhere, or content that edgetta does not write.
    """
    try:
        return _model(memoryview(data), tensors, tensor_bytes)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{where} cannot be used: {error}; export the bundle again") from error


def _model(data: memoryview, tensors: str, tensor_bytes: int) -> OnnxFile:
    graphs = []
    for number, value in fields(data):
        if number in (_MODEL["training"], _MODEL["functions"]):
            raise ValueError("it holds functions or training information")
        if number == _MODEL["opset"]:
            _default_domain(_last(value, 1))
        if number == _MODEL["graph"]:
            graphs.append(message(value))
    if len(graphs) != 1:
        raise ValueError("it is not an ONNX model")
    inputs, outputs = [], []
    for number, value in fields(graphs[0]):
        if number == _GRAPH["node"]:
            _node(message(value))
        elif number == _GRAPH["initializer"]:
            _tensor(message(value), tensors, tensor_bytes)
        elif number == _GRAPH["sparse"]:
            raise ValueError("it holds sparse weights")
        elif number == _GRAPH["input"]:
            inputs.append(_last(value, 1).decode())
        elif number == _GRAPH["output"]:
            outputs.append(_last(value, 1).decode())
    return OnnxFile(tuple(inputs), tuple(outputs))


def _node(node: memoryview) -> None:
    for number, value in fields(node):
        if number == _NODE["domain"]:
            _default_domain(bytes(message(value)))
        if number != _NODE["attribute"]:
            continue
        for kind, content in fields(message(value)):
            if kind in (_ATTRIBUTE[refused] for refused in ("graph", "graphs", "sparse", "sparses")):
                raise ValueError("it holds sub-graphs or sparse tensors")
            if kind in (_ATTRIBUTE["tensor"], _ATTRIBUTE["tensors"]):
                _tensor(message(content), "", 0)


def _tensor(tensor: memoryview, tensors: str, tensor_bytes: int) -> None:
    """Check where a tensor's values lie: inside the ONNX file, or within the one tensor file."""
    external = False
    entries: dict[str, str] = {}
    for number, value in fields(tensor):
        if number == _TENSOR["location"]:
            external = external or value == _EXTERNAL
        elif number == _TENSOR["external"]:
            external = True
            key = _last(value, 1).decode()
            if key in entries:
                raise ValueError("a weight names its place twice")
            entries[key] = _last(value, 2).decode()
    if not external:
        return
    if not tensors or entries.get("location") != tensors or not set(entries) <= {"location", "offset", "length"}:
        raise ValueError(f"its weights lie in {entries.get('location')!r}, and only {tensors!r} is allowed")
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers) or sum(map(int, numbers)) > tensor_bytes:
        raise ValueError(f"its weights lie outside {tensors!r}")


def _default_domain(domain: bytes) -> None:
    if domain not in (b"", b"ai.onnx"):
        raise ValueError(f"it uses operators of the domain {domain[:40]!r}")


def _last(value: int | bytes | memoryview, wanted: int) -> bytes:
    """The last text or message with field number `wanted` inside a message; empty where there is none."""
    found = b""
    for number, content in fields(message(value)):
        if number == wanted:
            found = bytes(message(content))
    return found
