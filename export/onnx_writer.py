"""Write a `Graph` as ONNX, opset 17 and IR version 8 by default, which JetPack 5's runtimes still read.

Weights are not repeated in every file: the ONNX files of a segment point into its one `.safetensors` file, which the
torch engine reads too. Operators that ONNX does not have at that opset, or that TensorRT's parser refuses, are spelled
out here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgetta.errors import MissingDependencyError, UsageError
from edgetta.segments.graph import BATCH, Graph, Node

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8


def to_onnx(graph: Graph, name: str, weights: Path | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """The graph as an ONNX model whose activations are float32 and whose batch is dynamic.

    With `weights`, the path of a `.safetensors` file that holds the graph's constants, they are external data in that
    file (its name only: it must lie beside the ONNX file). Without it they are stored inside. `opset` may be 17 or
    later, as far as the installed onnx package knows it.
    Raises `UsageError` for another opset, `MissingDependencyError` where the onnx package is absent.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingDependencyError("writing ONNX needs the onnx package: pip install 'edgetta[export]'") from error
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UsageError(f"opset {opset} cannot be written; choose one from {OPSET} to {newest}")

    offsets = tensor_offsets(weights) if weights else {}
    writer = _Writer(graph, opset)
    for node in graph.nodes:
        writer.write(node)
    initializers = []
    for constant, tensor in {**graph.constants, **writer.constants}.items():
        array = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
        if weights and constant in offsets:
            kind = TensorProto.INT8 if array.dtype == np.int8 else TensorProto.FLOAT
            proto = TensorProto(name=constant, data_type=kind, dims=list(array.shape))
            start, length = offsets[constant]
            if length != array.nbytes or array.dtype not in (np.float32, np.int8):
                raise UsageError(f"{constant!r} in {weights} is not the graph's own tensor; write that file anew")
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", weights.name), ("offset", start), ("length", length)):
                proto.external_data.add(key=key, value=str(value))
        else:
            proto = numpy_helper.from_array(array, constant)
        initializers.append(proto)

    def info(value_name: str) -> onnx.ValueInfoProto:
        value = graph.values[value_name]
        kind = TensorProto.BOOL if value.dtype == "bool" else TensorProto.FLOAT
        return helper.make_tensor_value_info(value_name, kind, ["batch" if s == BATCH else s for s in value.shape])

    proto_graph = helper.make_graph(
        writer.nodes, name, [info(n) for n in graph.inputs], [info(n) for n in graph.outputs], initializers
    )
    model = helper.make_model(proto_graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="edgetta")
    model.ir_version = IR_VERSION
    return model


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Absolute offset and length in bytes of every tensor in a `.safetensors` file."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return {
        name: (8 + size + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


class _Writer:
    """ONNX nodes for graph nodes; attributes that ONNX takes as inputs become small constants."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: dict[str, torch.Tensor] = {}

    def write(self, node: Node) -> None:
        if node.op in _EXPANSIONS:
            _EXPANSIONS[node.op](self, node)
            return
        attributes, inputs = dict(node.attributes), list(node.inputs)
        attributes.pop("inclusive", None)  # of a Clip: a matter of its gradient
        for key in _AS_INPUT.get(node.op, ()):
            value = attributes.pop(key)
            inputs.append(self.number(value) if isinstance(value, float) else self.integers(value))
        if node.op == "ReduceMean":
            self.mean(inputs[0], node.output, attributes["axes"], attributes["keepdims"])
        else:
            self.emit(node.op, inputs, node.output, attributes)

    def emit(self, op: str, inputs: list[str], output: str, attributes: Mapping[str, Any] | None = None) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **(attributes or {})))
        return output

    def mean(self, x: str, output: str, axes: Sequence[int], keepdims: int) -> str:
        """ReduceMean, whose axes became an input with opset 18."""
        if self.opset < 18:
            return self.emit("ReduceMean", [x], output, {"axes": list(axes), "keepdims": keepdims})
        return self.emit("ReduceMean", [x, self.integers(axes)], output, {"keepdims": keepdims})

    def integers(self, numbers: Any) -> str:
        values = [int(n) for n in numbers]
        name = "int." + ".".join(map(str, values))
        self.constants[name] = torch.tensor(values, dtype=torch.int64)
        return name

    def number(self, value: float) -> str:
        name = f"number.{value!r}"
        self.constants[name] = torch.tensor(value, dtype=torch.float32)
        return name

    def zeros_int8(self, shape: tuple[int, ...]) -> str:
        name = ".".join(["zero.int8", *map(str, shape)])
        self.constants[name] = torch.zeros(shape, dtype=torch.int8)
        return name

    def rank(self, name: str) -> int:
        constant = self.graph.constants.get(name)
        return constant.dim() if constant is not None else len(self.graph.values[name].shape)


_AS_INPUT: dict[str, tuple[str, ...]] = {
    "Reshape": ("shape",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Pad": ("pads", "value"),
    "Clip": ("min", "max"),
    "ReduceSum": ("axes",),
}


def _fake_quantize(w: _Writer, node: Node) -> None:
    """Quantised and back: the pair that engines turn into arithmetic in int8."""
    x, scale = node.inputs
    zero = w.zeros_int8(())
    codes = w.emit("QuantizeLinear", [x, scale, zero], f"{node.output}.codes")
    w.emit("DequantizeLinear", [codes, scale, zero], node.output)


def _dequantize_linear(w: _Writer, node: Node) -> None:
    codes, scale = node.inputs
    zeros = w.zeros_int8(tuple(w.graph.constants[scale].shape))
    w.emit("DequantizeLinear", [codes, scale, zeros], node.output, dict(node.attributes))


def _detach(w: _Writer, node: Node) -> None:
    w.emit("Identity", list(node.inputs), node.output)


def _masked(w: _Writer, node: Node) -> None:
    x, mask = node.inputs
    constant = w.graph.constants.get(x)
    if constant is not None and bool((constant == 1).all()):
        w.emit("Cast", [mask], node.output, {"to": 1})
        return
    cast = w.emit("Cast", [mask], f"{node.output}.mask", {"to": 1})
    w.emit("Mul", [x, cast], node.output)


def _silu(w: _Writer, node: Node) -> None:
    gate = w.emit("Sigmoid", list(node.inputs), f"{node.output}.gate")
    w.emit("Mul", [node.inputs[0], gate], node.output)


def _gelu(w: _Writer, node: Node) -> None:
    x, y = node.inputs[0], node.output
    erf = w.emit("Erf", [w.emit("Mul", [x, w.number(math.sqrt(0.5))], f"{y}.scaled")], f"{y}.erf")
    half = w.emit("Mul", [x, w.emit("Add", [erf, w.number(1.0)], f"{y}.sum")], f"{y}.product")
    w.emit("Mul", [half, w.number(0.5)], y)


def _channel_mean(w: _Writer, node: Node) -> None:
    _per_channel(w, node.inputs[0], node.output)


def _channel_variance(w: _Writer, node: Node) -> None:
    """mean((x - mean)^2), two passes: E[x^2] - mean^2 would cancel where a channel is nearly constant."""
    x, mean = node.inputs
    column = w.emit("Reshape", [mean, w.integers([-1, *([1] * (w.rank(x) - 2))])], f"{node.output}.mean")
    centred = w.emit("Sub", [x, column], f"{node.output}.centred")
    _per_channel(w, w.emit("Mul", [centred, centred], f"{node.output}.square"), node.output, w.rank(x))


def _per_channel(w: _Writer, x: str, output: str, rank: int | None = None) -> None:
    """Mean over all axes but the channel, the contiguous ones first, which ONNX Runtime does faster."""
    inner = list(range(2, w.rank(x) if rank is None else rank))
    w.mean(w.mean(x, f"{output}.inner", inner, 0) if inner else x, output, [0], 0)


_EXPANSIONS: dict[str, Callable[[_Writer, Node], None]] = {
    "FakeQuantize": _fake_quantize,
    "DequantizeLinear": _dequantize_linear,
    "Detach": _detach,
    "Masked": _masked,
    "Silu": _silu,
    "Gelu": _gelu,
    "ChannelMean": _channel_mean,
    "ChannelVariance": _channel_variance,
}
