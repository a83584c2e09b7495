"""How a `Graph` is spelled in ONNX, operator by operator, without the onnx package.

A device makes its ONNX models by this, from graphs that it has checked: no ONNX file travels. What ONNX does not have
at opset 17, or TensorRT's parser refuses, is spelled out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.segments.onnx_model import BOOL, FLOAT, OnnxModel, OnnxNode, OnnxValue, attribute

if TYPE_CHECKING:
    from edgetta.segments.graph import Graph, Node

OPSET = 17
IR_VERSION = 8


def spelled(graph: Graph, opset: int = OPSET) -> OnnxModel:
    """The graph as an ONNX model: float32 activations, and a batch that is free.

    opset   17, or a later one: from 18 on the axes of a mean are an input
    Raises `KeyError`, `TypeError` or `ValueError` for a node that is none; `Graph.from_json` lets none pass.
    """
    speller = Speller(graph, opset)
    for node in graph.nodes:
        speller.spell(node)
    constants = {name: plain(constant) for name, constant in graph.constants.items()}

    def value(name: str) -> OnnxValue:
        described = graph.values[name]
        shape = tuple(None if size < 0 else size for size in described.shape)
        return OnnxValue(name, BOOL if described.dtype == "bool" else FLOAT, shape)

    return OnnxModel(
        tuple(speller.nodes),
        {**constants, **speller.constants},
        tuple(map(value, graph.inputs)),
        tuple(map(value, graph.outputs)),
        opset,
        IR_VERSION,
    )


def plain(constant: Any) -> np.ndarray[Any, Any]:
    """A graph's constant as an ONNX file holds it: floating point as float32, the rest as it is."""
    array = np.asarray(constant.detach().cpu() if hasattr(constant, "detach") else constant)
    return np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype, "C")


class Speller:
    """ONNX nodes for graph nodes; attributes that ONNX takes as inputs become small constants."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph = graph
        self.opset = opset
        self.nodes: list[OnnxNode] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def spell(self, node: Node) -> None:
        if node.op in _EXPANSIONS:
            _EXPANSIONS[node.op](self, node)
            return
        attributes, inputs = dict(node.attributes), list(node.inputs)
        attributes.pop("inclusive", None)  # of a Clip: a matter of its gradient
        for key in _AS_INPUT.get(node.op, ()):
            value = attributes.pop(key)
            inputs.append(self.integers(value) if isinstance(value, list | tuple) else self.number(value))
        if node.op == "ReduceMean":
            self.mean(inputs[0], node.output, attributes["axes"], attributes["keepdims"])
        else:
            self.emit(node.op, inputs, node.output, attributes)

    def emit(self, op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any] | None = None) -> str:
        """One node. Attributes stand in the order of their names, as the onnx package writes them."""
        raw = {name: attribute(name, value) for name, value in sorted((attributes or {}).items())}
        self.nodes.append(OnnxNode(op, f"{op}_{output}", tuple(inputs), (output,), raw))
        return output

    def mean(self, x: str, output: str, axes: Sequence[int], keepdims: int) -> str:
        """ReduceMean, whose axes became an input with opset 18."""
        if self.opset < 18:
            return self.emit("ReduceMean", [x], output, {"axes": list(axes), "keepdims": keepdims})
        return self.emit("ReduceMean", [x, self.integers(axes)], output, {"keepdims": keepdims})

    def integers(self, numbers: Sequence[int]) -> str:
        values = [int(n) for n in numbers]
        name = "int." + ".".join(map(str, values))
        self.constants[name] = np.array(values, np.int64)
        return name

    def number(self, value: float) -> str:
        name = f"number.{float(value)!r}"
        self.constants[name] = np.array(value, np.float32)
        return name

    def zeros_int8(self, shape: tuple[int, ...]) -> str:
        name = ".".join(["zero.int8", *map(str, shape)])
        self.constants[name] = np.zeros(shape, np.int8)
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        constant = self.graph.constants.get(name)
        return tuple(constant.shape) if constant is not None else self.graph.values[name].shape

    def rank(self, name: str) -> int:
        return len(self.shape(name))


_AS_INPUT: dict[str, tuple[str, ...]] = {
    "Reshape": ("shape",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Pad": ("pads", "value"),
    "Clip": ("min", "max"),
    "ReduceSum": ("axes",),
}


def _fake_quantize(w: Speller, node: Node) -> None:
    """Quantised and back: the pair that engines turn into arithmetic in int8."""
    x, scale = node.inputs
    zero = w.zeros_int8(())
    codes = w.emit("QuantizeLinear", [x, scale, zero], f"{node.output}.codes")
    w.emit("DequantizeLinear", [codes, scale, zero], node.output)


def _dequantize_linear(w: Speller, node: Node) -> None:
    codes, scale = node.inputs
    zeros = w.zeros_int8(tuple(w.graph.constants[scale].shape))
    w.emit("DequantizeLinear", [codes, scale, zeros], node.output, dict(node.attributes))


def _masked(w: Speller, node: Node) -> None:
    x, mask = node.inputs
    constant = w.graph.constants.get(x)
    if constant is not None and bool((constant == 1).all()):
        w.emit("Cast", [mask], node.output, {"to": FLOAT})
        return
    cast = w.emit("Cast", [mask], f"{node.output}.mask", {"to": FLOAT})
    w.emit("Mul", [x, cast], node.output)


def _silu(w: Speller, node: Node) -> None:
    gate = w.emit("Sigmoid", list(node.inputs), f"{node.output}.gate")
    w.emit("Mul", [node.inputs[0], gate], node.output)


def _gelu(w: Speller, node: Node) -> None:
    x, y = node.inputs[0], node.output
    erf = w.emit("Erf", [w.emit("Mul", [x, w.number(math.sqrt(0.5))], f"{y}.scaled")], f"{y}.erf")
    half = w.emit("Mul", [x, w.emit("Add", [erf, w.number(1.0)], f"{y}.sum")], f"{y}.product")
    w.emit("Mul", [half, w.number(0.5)], y)


def _detach(w: Speller, node: Node) -> None:
    w.emit("Identity", list(node.inputs), node.output)


def _conv_weight_gradient(w: Speller, node: Node) -> None:
    """One product per place of the kernel: what the input shows there, by the gradient, summed over the images."""
    x, gradient = node.inputs
    kernel, strides, pads, dilations = (list(node.attributes[k]) for k in _WINDOW)
    group, y = int(node.attributes["group"]), node.output
    channels, (height, width) = w.shape(x)[1], w.shape(gradient)[2:]
    outputs = w.shape(gradient)[1]
    if any(pads):
        x = w.emit("Pad", [x, w.integers([0, 0, *pads[:2], 0, 0, *pads[2:]]), w.number(0.0)], f"{y}.padded")
    flat = w.emit("Reshape", [gradient, w.integers([0, group, outputs // group, height * width])], f"{y}.flat")
    turned = w.emit("Transpose", [flat], f"{y}.turned", {"perm": [0, 1, 3, 2]})
    shape, products = w.integers([0, group, channels // group, height * width]), []
    for number, (i, j) in enumerate(itertools.product(range(kernel[0]), range(kernel[1]))):
        starts = [i * dilations[0], j * dilations[1]]
        ends = [starts[0] + (height - 1) * strides[0] + 1, starts[1] + (width - 1) * strides[1] + 1]
        places = [w.integers(ends if k == 1 else starts) for k in range(2)]
        seen = w.emit("Slice", [x, *places, w.integers([2, 3]), w.integers(strides)], f"{y}.seen.{number}")
        seen = w.emit("Reshape", [seen, shape], f"{y}.rows.{number}")
        product = w.emit("MatMul", [seen, turned], f"{y}.product.{number}")  # (N, group, I, O)
        products.append(w.emit("ReduceSum", [product, w.integers([0])], f"{y}.sum.{number}", {"keepdims": 1}))
    joined = w.emit("Concat", products, f"{y}.joined", {"axis": 0})  # (k * k, group, I, O)
    ordered = w.emit("Transpose", [joined], f"{y}.ordered", {"perm": [1, 3, 2, 0]})
    w.emit("Reshape", [ordered, w.integers([outputs, channels // group, *kernel])], y)


_WINDOW = ("kernel_shape", "strides", "pads", "dilations")


def _channel_mean(w: Speller, node: Node) -> None:
    _per_channel(w, node.inputs[0], node.output)


def _channel_variance(w: Speller, node: Node) -> None:
    """mean((x - mean)^2), two passes: E[x^2] - mean^2 would cancel where a channel is nearly constant."""
    x, mean = node.inputs
    column = w.emit("Reshape", [mean, w.integers([-1, *([1] * (w.rank(x) - 2))])], f"{node.output}.mean")
    centred = w.emit("Sub", [x, column], f"{node.output}.centred")
    _per_channel(w, w.emit("Mul", [centred, centred], f"{node.output}.square"), node.output, w.rank(x))


def _per_channel(w: Speller, x: str, output: str, rank: int | None = None) -> None:
    """Mean over all axes but the channel, the contiguous ones first, which ONNX Runtime does faster."""
    inner = list(range(2, w.rank(x) if rank is None else rank))
    w.mean(w.mean(x, f"{output}.inner", inner, 0) if inner else x, output, [0], 0)


_EXPANSIONS: dict[str, Callable[[Speller, Node], None]] = {
    "FakeQuantize": _fake_quantize,
    "DequantizeLinear": _dequantize_linear,
    "Masked": _masked,
    "Silu": _silu,
    "Gelu": _gelu,
    "Detach": _detach,
    "ConvWeightGradient": _conv_weight_gradient,
    "ChannelMean": _channel_mean,
    "ChannelVariance": _channel_variance,
}
