"""A program in the layout in which ONNX Runtime's convolutions work on x86: channels in blocks, from end to end.

ONNX Runtime brings constant convolutions into that layout by itself, and what stands between them as long as nothing
about it varies. In our programs everything varies: BatchNorm's statistics, what adapts, masks, sums by channel. At
each of these it would leave the blocks and enter them again, two passes over memory. Its operators for blocks,
however, take weights as inputs like any others. So a program is spelled in them here:

- a value per channel (BatchNorm, a scale, an offset) is a depthwise convolution of size 1 whose weight and bias are
  computed on the way; it takes a ReLU or an addition with it;
- a BatchNorm that alone reads a convolution is folded into its weights, a few numbers beside the images;
- what is centred about a mean is so by the bias of the convolution that makes it;
- sums by channel are averages over the image, which have an operator; element by element the layout does not matter,
  and masks are kept as they come.

What has no such spelling runs in plain layout, with a change of layout before and after.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetta.engines.block_writer import DOMAIN, BlockWriter, node_of
from edgetta.engines.contract import Array
from edgetta.segments.graph import Graph, Node
from edgetta.segments.onnx_model import BOOL, FLOAT, OnnxModel, OnnxValue, reals, text
from edgetta.segments.onnx_spelling import IR_VERSION, OPSET, plain

_UNARY = ("Abs", "Erf", "HardSigmoid", "HardSwish", "Identity", "Neg", "Not", "Sigmoid", "Silu", "Gelu", "Tanh")
_UNARY_WITHOUT_PADDING = ("Exp", "Reciprocal", "Sqrt")  # of a zero they make what must not spread
_BINARY = ("Add", "Sub", "Mul", "Greater", "Less", "Equal", "And", "Or")


@dataclass(frozen=True)
class Lowered:
    """A model whose inputs have the graph's names and whose outputs have the graph's order.

    in_blocks   inputs and outputs (by the graph's names) that are in blocks, and their shapes there
    """

    model: OnnxModel
    in_blocks: Mapping[str, tuple[int, ...]]
    blocks: bool = True  # False for a model that was made another way


def lower(graph: Graph, block: int, inputs_in_blocks: Collection[str] = (), kept: Collection[str] = ()) -> Lowered:
    """The graph as an ONNX model in blocks of `block` channels.

    inputs_in_blocks   inputs that come as `kept` outputs of another program left them
    kept               outputs that may stay in blocks
    """
    return _Lowering(graph, block, inputs_in_blocks).result(kept)


def to_blocks(array: Array, block: int) -> Array:
    """A plain (N, C, H, W) as it lies in blocks, padded where the last one is not full: (N, C', H, W)."""
    n, c, h, w = array.shape
    array = np.pad(array, [(0, 0), (0, -c % block), (0, 0), (0, 0)])
    turned = array.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(turned).reshape(array.shape)


@functools.cache
def block_size() -> int:
    """Channels in a block on this machine, found by asking ONNX Runtime.

    0 where it has no such layout, or where its operators for blocks do not do what is expected of them.
    """
    import onnxruntime

    channels = 32
    nodes = (
        node_of("ReorderInput", ["x"], "y", {}, DOMAIN),
        node_of("Conv", ["y", "weight", "bias", "y"], "z", {"group": channels, "kernel_shape": [1, 1]}, DOMAIN),
        node_of("GlobalAveragePool", ["z"], "pooled", {}, DOMAIN),
        node_of("ReorderOutput", ["pooled"], "average", {"channels": channels}, DOMAIN),
    )

    def value(name: str, *shape: int) -> OnnxValue:
        return OnnxValue(name, FLOAT, shape)

    inputs = (value("x", 1, channels, 1, 2), value("weight", channels, 1, 1, 1), value("bias", channels))
    outputs = (value("y", 1, channels, 1, 2), value("average", 1, channels, 1, 1))
    images = np.arange(2 * channels, dtype=np.float32).reshape(1, channels, 1, 2)
    weight, bias = np.arange(channels, dtype=np.float32), np.full(channels, 0.5, np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        data = OnnxModel(nodes, {}, inputs, outputs, OPSET, IR_VERSION).to_bytes()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found, average = session.run(None, {"x": images, "weight": weight.reshape(-1, 1, 1, 1), "bias": bias})
    except Exception:  # it has no such operators, which each version says in its own way
        return 0
    expected = images.mean((2, 3), keepdims=True) * (weight.reshape(-1, 1, 1) + 1) + 0.5
    if not np.allclose(average, expected):
        return 0
    return next((size for size in (4, 8, 16, 32) if np.array_equal(found, to_blocks(images, size))), 0)


class _Lowering(BlockWriter):
    """Walks over the graph, operator by operator."""

    def __init__(self, graph: Graph, block: int, inputs_in_blocks: Collection[str]) -> None:
        super().__init__(graph, block, inputs_in_blocks)
        self.given = frozenset(inputs_in_blocks)
        self.folded: set[str] = set()  # what BatchNorms make that convolutions have taken over

    def result(self, kept: Collection[str]) -> Lowered:
        for node in self.graph.nodes:
            if not self._in_blocks(node):
                self._plainly(node)
        in_blocks = {name: self.blocked_shape(name) for name in self.given}
        outputs = []
        for name in self.graph.outputs:
            if name in kept and name in self.blocked_names and name not in self.graph.inputs:
                in_blocks[name] = self.blocked_shape(name)
                outputs.append(self._value(name, self.blocked_names[name], in_blocks[name]))
            else:
                outputs.append(self._value(name, self.plain(name), self.shape(name)))
        inputs = [self._value(name, name, in_blocks.get(name, self.shape(name))) for name in self.graph.inputs]
        weights = {**self.weights, **self.speller.constants}
        model = OnnxModel(tuple(self.nodes), weights, tuple(inputs), tuple(outputs), OPSET, IR_VERSION)
        return Lowered(model.only([value.name for value in outputs]), in_blocks)

    def _value(self, name: str, called: str, shape: tuple[int, ...]) -> OnnxValue:
        sizes = tuple(None if size < 0 else size for size in shape)
        return OnnxValue(called, BOOL if self.boolean(name) else FLOAT, sizes)

    def _plainly(self, node: Node) -> None:
        self.spell(node, {name: self.plain(name) for name in dict.fromkeys(node.inputs) if name})
        self.plain_names[node.output] = node.output

    def _put(self, node: Node, blocked: str) -> bool:
        """A node's output is there in blocks now."""
        self.blocked_names[node.output] = blocked
        return True

    def _in_blocks(self, node: Node) -> bool:
        """Write the node in blocks; False where that cannot be."""
        if node.output in self.folded:
            return True
        handlers: dict[str, Callable[[Node], bool]] = {
            "Conv": self._convolution,
            "BatchNormalization": self._batch_normalization,
            "Relu": self._activation,
            "Clip": self._activation,
            "Masked": self._masked,
            "ChannelMean": self._channel_mean,
            "ReduceMean": self._reduce,
            "ReduceSum": self._reduce,
            "MaxPool": self._max_pool,
            "Reshape": self._reshape,
            **dict.fromkeys((*_UNARY, *_UNARY_WITHOUT_PADDING), self._elementwise),
            **dict.fromkeys(_BINARY, self._binary),
        }
        return node.op in handlers and handlers[node.op](node)

    # Element by element.

    def _elementwise(self, node: Node) -> bool:
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self.in_blocks(x) or (node.op in _UNARY_WITHOUT_PADDING and not self.fills(x)):
            return False
        self.spell(node, {x: self.blocked(x), node.output: output})
        return self._put(node, output)

    def _binary(self, node: Node) -> bool:
        a, b = node.inputs
        output = f"{node.output}.blocked"
        if self.fits(a) and self.fits(b) and self.shape(a) == self.shape(b):
            if not (self.to_blocks(a) and self.to_blocks(b) and (self.in_blocks(a) or self.in_blocks(b))):
                return False
            if node.op == "Add" and self._summed(node):
                return True
            self.spell(node, {a: self.blocked(a), b: self.blocked(b), node.output: output})
            return self._put(node, output)
        x, other = (a, b) if self.fits(a) else (b, a)
        if not self.in_blocks(x):
            return False
        if self.scalar(other):
            self.spell(node, {x: self.blocked(x), node.output: output})
            return self._put(node, output)
        return self.column(other, self.shape(x)[1]) and self._with_column(node, x, self.vector(other))

    def _with_column(self, node: Node, x: str, vector: str) -> bool:
        """An operator on x and a number per channel."""
        output, first = f"{node.output}.blocked", node.inputs[0] == x
        if node.op == "Mul":
            made = self.depthwise(self.blocked(x), output, vector, None, self.shape(x)[1])
            return self._put(node, self.taking_more(made))
        if node.op == "Add":
            return self._shifted(node, x, vector)
        if node.op == "Sub" and first and self.alone(x) is node:
            return self._shifted(node, x, self.negative(vector))
        if node.op == "Sub" and first:
            return self._put(node, self.minus(x, vector))
        if node.op == "Greater" and first:
            return self._put(node, self.emit("Greater", [self.minus(x, vector), self.number(0.0)], output))
        return False

    def _shifted(self, node: Node, x: str, vector: str) -> bool:
        """x + vector by channel: the bias of what made x, where that has none."""
        output, made = f"{node.output}.blocked", self.blocked(x)
        if self.may_take(x, node, inputs=2):
            conv = self.take(x)
            self.write(replace(conv, inputs=(*conv.inputs, self.wide(vector, self.shape(x)[1])), outputs=(output,)))
        else:
            self.depthwise(made, output, None, vector, self.shape(x)[1])
        return self._put(node, self.taking_more(output))

    def _summed(self, node: Node) -> bool:
        """An addition that the convolution on one of its sides takes on."""
        output = f"{node.output}.blocked"
        for x, other in (node.inputs, node.inputs[::-1]):
            if x != other and self.may_take(x, node, inputs=3):
                added = self.blocked(other)
                conv = self.take(x)
                inputs = (*conv.inputs, "") if len(conv.inputs) == 2 else conv.inputs
                self.write(replace(conv, inputs=(*inputs, added), outputs=(output,)))
                return self._put(node, self.taking_more(output))
        return False

    def _activation(self, node: Node) -> bool:
        """A ReLU or a clip, in what made its input, where that can be."""
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self.in_blocks(x):
            return False
        made = self.blocked(x)
        if self.may_take(x, node, inputs=4):
            conv = self.take(x)
            attributes = {**conv.attributes, "activation": text("activation", node.op)}
            if node.op == "Clip":
                limits = [float(node.attributes[name]) for name in ("min", "max")]
                attributes["activation_params"] = reals("activation_params", limits)
            self.write(replace(conv, outputs=(output,), attributes=attributes))
        else:
            self.spell(node, {x: made, node.output: output})
        return self._put(node, output)

    def _masked(self, node: Node) -> bool:
        x, mask = node.inputs
        if not self.in_blocks(mask):
            return False
        if x in self.graph.constants and bool((plain(self.graph.constants[x]) == 1).all()):
            return self._put(node, self.cast(mask))
        if not self.fits(x):
            return False
        return self._put(node, self.emit("Mul", [self.blocked(x), self.cast(mask)], f"{node.output}.blocked"))

    # Convolutions and normalisations.

    def _convolution(self, node: Node) -> bool:
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        (out, per, *window), group = self.shape(weight), int(node.attributes["group"])
        depthwise = group > 1 and group == out and per == 1
        images = group == 1 and per < self.block  # plain on one side, in blocks on the other
        producer = self.producers.get(weight)
        if not self.channels_fit(out) or (producer is not None and producer.op == "DequantizeLinear"):
            return False
        if not (depthwise or images or (group == 1 and self.channels_fit(per))) or (images and self.in_blocks(x)):
            return False
        x, more = self._unpadded(x)
        source = self.plain(x) if images else self.blocked(x)
        attributes: dict[str, Any] = {
            name: _listed(node.attributes[name]) for name in ("strides", "pads", "dilations")
        }
        attributes["pads"] = [a + b for a, b in zip(attributes["pads"], more, strict=True)]
        attributes |= {"group": self.whole_blocks(group) if depthwise else group, "kernel_shape": list(window)}
        output, alone = f"{node.output}.blocked", self.alone(node.output)
        narrow = images or depthwise
        if alone is not None and alone.op == "BatchNormalization" and alone.inputs[0] == node.output:
            scale, shift = self._scale_and_shift(alone, None)
            if bias:
                moved = self.emit("Mul", [self.plain(bias), scale], f"{output}.moved")
                shift = self.emit("Add", [moved, shift], f"{output}.bias")
            kernel, _ = self.kernel(weight, narrow, scale, f"{output}.weight")
            inputs = [source, kernel, self.wide(shift, out)]
            self.folded.add(alone.output)
            return self._put(
                alone, self.taking_more(self.emit("Conv", inputs, f"{alone.output}.blocked", attributes, DOMAIN))
            )
        kernel, _ = self.kernel(weight, narrow, None, f"{output}.weight")
        about = self._about(node.output)
        if about:
            shift = self.negative(about)
            if bias:
                shift = self.emit("Add", [self.plain(bias), shift], f"{output}.bias")
            inputs = [source, kernel, self.wide(shift, out)]
            self.centred[node.output] = (
                self.emit("Conv", inputs, self.unused(f"{node.output}.centred"), attributes, DOMAIN),
                about,
            )
            return True
        inputs = [source, kernel, *([self.wide(self.plain(bias), out)] if bias else [])]
        return self._put(node, self.taking_more(self.emit("Conv", inputs, output, attributes, DOMAIN)))

    def _unpadded(self, x: str) -> tuple[str, list[int]]:
        """What a value is padded from, with zeros around the image, which a convolution does by itself, and how far.

        The node that pads is written all the same, and left out in the end where nobody reads it.
        """
        producer = self.producers.get(x)
        if producer is not None and producer.op == "Pad" and producer.attributes["value"] == 0:
            pads = _listed(producer.attributes["pads"])
            if not any(pads[axis] for axis in (0, 1, 4, 5)) and len(pads) == 8:
                return producer.inputs[0], [*pads[2:4], *pads[6:8]]
        return x, [0] * 4

    def _about(self, name: str) -> str:
        """The vector about which those who read a value see it; "" where somebody sees it as it is, or another way."""
        if name in self.graph.outputs:
            return ""
        found = set()
        for reader in self.readers.get(name, []):
            if reader.op in ("Sub", "Greater") and reader.inputs[0] == name:
                column = self.producers.get(reader.inputs[1])
                if column is None or column.op != "Reshape" or not self.column(column.output, self.shape(name)[1]):
                    return ""
                source = column.inputs[0]
                if source not in self.graph.inputs or len(self.shape(source)) != 1:
                    return ""
                found.add(source)
            elif reader.op != "BatchNormalization" or reader.inputs[0] != name:
                return ""
        return found.pop() if len(found) == 1 else ""

    def _scale_and_shift(self, node: Node, about: str | None) -> tuple[str, str]:
        """A BatchNorm as scale * (x - about) + shift, vectors both."""
        weight, bias, mean, variance = (self.plain(name) for name in node.inputs[1:])
        y = node.output
        safe = self.emit("Add", [variance, self.number(float(node.attributes["epsilon"]))], f"{y}.safe")
        scale = self.emit("Div", [weight, self.emit("Sqrt", [safe], f"{y}.deviation")], f"{y}.scale")
        if about == mean:
            return scale, bias
        apart = mean if about is None else self.emit("Sub", [mean, about], f"{y}.apart")
        moved = self.emit("Mul", [apart, scale], f"{y}.moved")
        return scale, self.emit("Sub", [bias, moved], f"{y}.shift")

    def _batch_normalization(self, node: Node) -> bool:
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self.to_blocks(x):
            return False
        made, about = self.centred[x] if x in self.centred else (self.blocked(x), None)
        scale, shift = self._scale_and_shift(node, about)
        return self._put(node, self.taking_more(self.depthwise(made, output, scale, shift, self.shape(x)[1])))

    # Over the image.

    def _channel_mean(self, node: Node) -> bool:
        x = node.inputs[0]
        if not self.in_blocks(x):
            return False
        self.emit("ReduceMean", [self.averages(x, node.output)], node.output, {"axes": [0, 2, 3], "keepdims": 0})
        self.plain_names[node.output] = node.output
        return True

    def _reduce(self, node: Node) -> bool:
        """Means and sums over the image, and whatever else beside the channels."""
        x, axes = node.inputs[0], sorted(node.attributes["axes"])
        if not self.in_blocks(x) or axes[-2:] != [2, 3]:
            return False
        y, keep = node.output, int(node.attributes["keepdims"])
        found = self.averages(x, y)
        if node.op == "ReduceMean":
            self.emit("ReduceMean", [found], y, {"axes": axes, "keepdims": keep})
        else:
            totals = self.emit("Mul", [found, self.number(float(math.prod(self.shape(x)[2:])))], f"{y}.totals")
            self.emit("ReduceSum", [totals, self.integers(*axes)], y, {"keepdims": keep})
        self.plain_names[y] = y
        return True

    def _max_pool(self, node: Node) -> bool:
        x = node.inputs[0]
        if not self.in_blocks(x) or node.attributes.get("ceil_mode", 0):
            return False
        attributes: dict[str, Any] = {n: _listed(node.attributes[n]) for n in ("kernel_shape", "strides", "pads")}
        return self._put(node, self.emit("MaxPool", [self.blocked(x)], f"{node.output}.blocked", attributes, DOMAIN))

    def _reshape(self, node: Node) -> bool:
        """A vector that becomes a column is remembered as a vector."""
        source = self.shape(node.inputs[0])
        if len(source) == 1 and self.shape(node.output) == (1, source[0], 1, 1):
            self.remember(node.output, self.plain(node.inputs[0]))
        return False


def _listed(value: Any) -> list[int]:
    return [int(number) for number in value]
