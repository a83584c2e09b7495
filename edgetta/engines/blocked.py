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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetta.engines.contract import Array
from edgetta.segments.graph import BATCH, Graph, Node
from edgetta.segments.onnx_model import BOOL, FLOAT, OnnxModel, OnnxNode, OnnxValue, attribute, text
from edgetta.segments.onnx_spelling import IR_VERSION, OPSET, Speller, plain

DOMAIN = "com.microsoft.nchwc"
_UNARY = ("Abs", "Clip", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "Neg", "Not", "Reciprocal")
_SMOOTH = ("Sigmoid", "Silu", "Gelu", "Sqrt", "Tanh", "Detach")
_BINARY = ("Add", "Sub", "Mul", "Div", "Greater", "Less", "Equal", "And", "Or")


@dataclass(frozen=True)
class Lowered:
    """A model, and which of its inputs and outputs (by the graph's names) are in blocks."""

    model: OnnxModel
    in_blocks: frozenset[str]


def lower(graph: Graph, block: int, inputs_in_blocks: Collection[str] = (), kept: Collection[str] = ()) -> Lowered:
    """The graph as an ONNX model in blocks of `block` channels.

    inputs_in_blocks   inputs that come as `kept` outputs of another program left them
    kept               outputs that may stay in blocks
    """
    return _Lowering(graph, block, inputs_in_blocks).result(kept)


def to_blocks(array: Array, block: int) -> Array:
    """A plain (N, C, H, W) as it lies in blocks: the same shape, another order."""
    n, c, h, w = array.shape
    return np.ascontiguousarray(array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2)).reshape(
        array.shape
    )


@functools.cache
def block_size() -> int:
    """Channels in a block on this machine, found by asking ONNX Runtime; 0 where it has no such layout."""
    import onnxruntime

    channels = 32
    node = _node("ReorderInput", ["x"], "y", {}, DOMAIN)
    value = functools.partial(OnnxValue, kind=FLOAT, shape=(1, channels, 1, 2))
    model = OnnxModel((node,), {}, (value("x"),), (value("y"),), OPSET, IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    x = np.arange(2 * channels, dtype=np.float32).reshape(1, channels, 1, 2)
    try:
        session = onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": x})
    except Exception:  # no such operators here: of its kinds none is more than that
        return 0
    return next((size for size in (4, 8, 16, 32) if np.array_equal(found, to_blocks(x, size))), 0)


class _Lowering:
    """Walks over the graph, and knows in which layouts each value is there."""

    def __init__(self, graph: Graph, block: int, inputs_in_blocks: Collection[str]) -> None:
        self.graph, self.block = graph, block
        self.speller = Speller(graph, OPSET)
        self.nodes: list[OnnxNode] = []
        self.weights: dict[str, Array] = {name: plain(constant) for name, constant in graph.constants.items()}
        self.readers = graph.consumers()
        self.producers = graph.producers()
        self.plain_names = {name: name for name in (*graph.inputs, *graph.constants) if name not in inputs_in_blocks}
        self.blocked_names = {name: name for name in graph.inputs if name in inputs_in_blocks}
        self.vectors: dict[str, str] = {}  # column (1, C, 1, 1) -> vector (C,)
        self.centred: dict[str, tuple[str, str]] = {}  # value -> it minus a vector, in blocks, and that vector
        self.fusable: dict[str, str] = {}  # value in blocks -> what made it: a convolution that may take more on
        self.folded: set[str] = set()  # BatchNorms that convolutions have taken over
        self.casts: dict[str, str] = {}
        self.inputs_in_blocks = frozenset(inputs_in_blocks)

    def result(self, kept: Collection[str]) -> Lowered:
        for node in self.graph.nodes:
            if not self._in_blocks(node):
                self._plainly(node)
        outputs, in_blocks = [], set(self.inputs_in_blocks)
        for name in self.graph.outputs:
            value = self.graph.values[name]
            stays = name in kept and name in self.blocked_names and name not in self.graph.inputs
            if stays:
                in_blocks.add(name)
            made = self.blocked_names[name] if stays else self._plain(name)
            shape = tuple(None if size == BATCH else size for size in value.shape)
            outputs.append(OnnxValue(made, BOOL if value.dtype == "bool" else FLOAT, shape))
        model = OnnxModel(
            tuple(self.nodes),
            {**self.weights, **self.speller.constants},
            tuple(self._input(name) for name in self.graph.inputs),
            tuple(outputs),
            OPSET,
            IR_VERSION,
        )
        return Lowered(model.only([value.name for value in outputs]), frozenset(in_blocks))

    def _input(self, name: str) -> OnnxValue:
        value = self.graph.values[name]
        shape = tuple(None if size == BATCH else size for size in value.shape)
        return OnnxValue(name, BOOL if value.dtype == "bool" else FLOAT, shape)

    # What a value is.

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.speller.shape(name)

    def _fits(self, name: str) -> bool:
        """Whether a value can lie in blocks."""
        if not name or name not in self.graph.values:
            return False
        shape = self._shape(name)
        return len(shape) == 4 and shape[0] == BATCH and shape[1] % self.block == 0

    def _boolean(self, name: str) -> bool:
        return name in self.graph.values and self.graph.values[name].dtype == "bool"

    def _scalar(self, name: str) -> bool:
        return math.prod(self._shape(name)) == 1

    def _column(self, name: str, channels: int) -> bool:
        return self._shape(name) == (1, channels, 1, 1)

    def _alone(self, name: str) -> Node | None:
        """The one node that reads a value which is no output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    # In which layouts it is there.

    def _there(self, name: str) -> bool:
        """Whether a value is in blocks, or can be brought into them."""
        if not self._fits(name):
            return False
        return name in self.blocked_names or name in self.centred or not self._boolean(name)

    def _blocked(self, name: str) -> str:
        if name not in self.blocked_names:
            if name in self.centred:
                centred, mean = self.centred[name]
                self.blocked_names[name] = self._depthwise(
                    centred, f"{name}.blocked", None, mean, self._shape(name)[1]
                )
            else:
                self.blocked_names[name] = self._emit(
                    "ReorderInput", [self._plain(name)], f"{name}.blocked", {}, DOMAIN
                )
        return self.blocked_names[name]

    def _plain(self, name: str) -> str:
        if not name or name in self.plain_names:
            return self.plain_names[name] if name else ""
        blocked, channels = self._blocked(name), {"channels": self._shape(name)[1]}
        output = f"{name}.plain" if name in self.graph.inputs else name
        if self._boolean(name):
            turned = self._emit("ReorderOutput", [self._cast(name)], f"{name}.turned", channels, DOMAIN)
            self.plain_names[name] = self._emit("Cast", [turned], output, {"to": BOOL})
        else:
            self.plain_names[name] = self._emit("ReorderOutput", [blocked], output, channels, DOMAIN)
        return self.plain_names[name]

    def _cast(self, mask: str) -> str:
        """A mask in blocks as zeros and ones."""
        if mask not in self.casts:
            self.casts[mask] = self._emit("Cast", [self._blocked(mask)], f"{mask}.ones", {"to": FLOAT})
        return self.casts[mask]

    # Writing nodes.

    def _emit(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> str:
        self.nodes.append(_node(op, inputs, output, attributes or {}, domain))
        return output

    def _number(self, value: float) -> str:
        name = f"number.{value!r}"
        self.weights[name] = np.array(value, np.float32)
        return name

    def _integers(self, *numbers: int) -> str:
        name = "int." + ".".join(map(str, numbers))
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def _ones(self, channels: int) -> str:
        name = f"ones.{channels}.blocked"
        self.weights[name] = np.ones((channels, 1, 1, 1), np.float32)
        return name

    def _vector(self, name: str) -> str:
        """A column (1, C, 1, 1) as a vector (C,)."""
        if name not in self.vectors:
            channels = self._shape(name)[1]
            if name in self.graph.constants:
                self.vectors[name] = f"{name}.vector"
                self.weights[self.vectors[name]] = plain(self.graph.constants[name]).reshape(channels)
            else:
                shape = self._integers(channels)
                self.vectors[name] = self._emit("Reshape", [self._plain(name), shape], f"{name}.vector")
        return self.vectors[name]

    def _negative(self, vector: str) -> str:
        return self._emit("Neg", [vector], self._new(f"{vector}.negative"))

    def _new(self, name: str) -> str:
        """A name that nothing has yet."""
        taken, unused, count = {output for node in self.nodes for output in node.outputs}, name, 0
        while unused in taken:
            count += 1
            unused = f"{name}.{count}"
        return unused

    def _depthwise(self, x: str, output: str, scale: str | None, shift: str | None, channels: int) -> str:
        """scale * x + shift by channel; `x` and `output` are names of values in blocks, the others of vectors."""
        weight = self._ones(channels)
        if scale is not None:
            weight = self._emit("Reshape", [scale, self._integers(channels, 1, 1, 1)], self._new(f"{output}.weight"))
        inputs = [x, weight] if shift is None else [x, weight, shift]
        return self._emit("Conv", inputs, output, {"group": channels, "kernel_shape": [1, 1]}, DOMAIN)

    def _put(self, node: Node, blocked: str) -> bool:
        """A node's output is there in blocks now."""
        self.blocked_names[node.output] = blocked
        return True

    def _plainly(self, node: Node) -> None:
        names = {name: self._plain(name) for name in dict.fromkeys(node.inputs) if name}
        self._spelled(node, names)
        self.plain_names[node.output] = node.output

    def _spelled(self, node: Node, names: Mapping[str, str]) -> None:
        """What the node is in ONNX, with other names for some values."""
        start = len(self.speller.nodes)
        self.speller.spell(node)
        for made in self.speller.nodes[start:]:
            inputs = tuple(names.get(name, name) for name in made.inputs)
            outputs = tuple(names.get(name, name) for name in made.outputs)
            self.nodes.append(replace(made, inputs=inputs, outputs=outputs))

    # Operators.

    def _in_blocks(self, node: Node) -> bool:
        """Write the node in blocks; False where that cannot be."""
        if node.output in self.folded:
            return True
        if node.op in (*_UNARY, *_SMOOTH):
            return self._elementwise(node)
        if node.op in _BINARY:
            return self._binary(node)
        handler: Callable[[Node], bool] | None = {
            "Conv": self._convolution,
            "BatchNormalization": self._batch_normalization,
            "Relu": self._relu,
            "Masked": self._masked,
            "ChannelMean": self._channel_mean,
            "ReduceMean": self._reduce,
            "ReduceSum": self._reduce,
            "MaxPool": self._max_pool,
            "Reshape": self._reshape,
        }.get(node.op)
        return handler(node) if handler is not None else False

    def _elementwise(self, node: Node) -> bool:
        x = node.inputs[0]
        if not self._fits(x) or x not in self.blocked_names:
            return False
        self._spelled(node, {x: self._blocked(x), node.output: f"{node.output}.blocked"})
        return self._put(node, f"{node.output}.blocked")

    def _binary(self, node: Node) -> bool:
        a, b = node.inputs
        whole = [self._fits(name) for name in (a, b)]
        if all(whole) and self._shape(a) == self._shape(b):
            if not (self._there(a) and self._there(b)):
                return False
            if not any(name in self.blocked_names or name in self.centred for name in (a, b)):
                return False
            if node.op == "Add" and self._summed(node):
                return True
            names = {a: self._blocked(a), b: self._blocked(b), node.output: f"{node.output}.blocked"}
            self._spelled(node, names)
            return self._put(node, f"{node.output}.blocked")
        if whole[0] == whole[1] or not self._there(a if whole[0] else b):
            return False
        x, other = (a, b) if whole[0] else (b, a)
        if self._scalar(other):
            if x not in self.blocked_names:
                return False
            self._spelled(node, {x: self._blocked(x), node.output: f"{node.output}.blocked"})
            return self._put(node, f"{node.output}.blocked")
        channels = self._shape(x)[1]
        if not self._column(other, channels) or (x not in self.blocked_names and x not in self.centred):
            return False
        vector, output = self._vector(other), f"{node.output}.blocked"
        if node.op == "Mul":
            return self._put(
                node, self._taking_more(self._depthwise(self._blocked(x), output, vector, None, channels))
            )
        if node.op == "Add":
            return self._shifted(node, x, vector)
        if node.op == "Sub" and x == a:
            if self._alone(x) is node:
                return self._shifted(node, x, self._negative(vector))
            return self._put(node, self._minus(x, vector))
        if node.op == "Greater" and x == a:
            self._emit("Greater", [self._minus(x, vector), self._number(0.0)], output)
            return self._put(node, output)
        return False

    def _minus(self, x: str, vector: str) -> str:
        """x - vector by channel, in blocks, made once."""
        if x not in self.centred or self.centred[x][1] != vector:
            channels = self._shape(x)[1]
            made = self._depthwise(self._blocked(x), self._new(f"{x}.centred"), None, self._negative(vector), channels)
            self.centred[x] = (made, vector)
        return self.centred[x][0]

    def _shifted(self, node: Node, x: str, vector: str) -> bool:
        """x + vector by channel: the bias of what made x, where that has none and nobody else reads it."""
        output, made = f"{node.output}.blocked", self._blocked(x)
        if made in self.fusable and self._alone(x) is node and self._may(made, inputs=2):
            conv = self._take(made)
            self.nodes.append(replace(conv, inputs=(*conv.inputs, vector), outputs=(output,)))
        else:
            self._depthwise(made, output, None, vector, self._shape(x)[1])
        return self._put(node, self._taking_more(output))

    def _taking_more(self, output: str) -> str:
        """Note that a convolution may take a bias, a sum or a ReLU on."""
        self.fusable[output] = output
        return output

    def _may(self, made: str, inputs: int) -> bool:
        """Whether the convolution that made a value has no more than so many inputs, and no activation."""
        node = next(node for node in reversed(self.nodes) if made in node.outputs)
        return len(node.inputs) <= inputs and "activation" not in node.attributes

    def _take(self, made: str) -> OnnxNode:
        """Take the convolution that made a value out of the list."""
        at = next(i for i in range(len(self.nodes) - 1, -1, -1) if made in self.nodes[i].outputs)
        del self.fusable[made]
        return self.nodes.pop(at)

    def _summed(self, node: Node) -> bool:
        """An addition that the convolution on one of its sides takes on."""
        output = f"{node.output}.blocked"
        for x, other in (node.inputs, node.inputs[::-1]):
            made = self.blocked_names.get(x, "")
            if made in self.fusable and x != other and self._alone(x) is node and self._may(made, inputs=3):
                added = self._blocked(other)
                conv = self._take(made)
                inputs = (*conv.inputs, "") if len(conv.inputs) == 2 else conv.inputs
                self.nodes.append(replace(conv, inputs=(*inputs, added), outputs=(output,)))
                return self._put(node, self._taking_more(output))
        return False

    def _relu(self, node: Node) -> bool:
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self._fits(x) or (x not in self.blocked_names and x not in self.centred):
            return False
        made = self._blocked(x)
        if made in self.fusable and self._alone(x) is node and self._may(made, inputs=4):
            conv = self._take(made)
            attributes = {**conv.attributes, "activation": text("activation", "Relu")}
            self.nodes.append(replace(conv, outputs=(output,), attributes=attributes))
        else:
            self._emit("Relu", [made], output)
        return self._put(node, output)

    def _masked(self, node: Node) -> bool:
        x, mask = node.inputs
        if mask not in self.blocked_names:
            return False
        if x in self.graph.constants and bool((plain(self.graph.constants[x]) == 1).all()):
            return self._put(node, self._cast(mask))
        if not self._fits(x):
            return False
        self._emit("Mul", [self._blocked(x), self._cast(mask)], f"{node.output}.blocked")
        return self._put(node, f"{node.output}.blocked")

    def _convolution(self, node: Node) -> bool:
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else ""
        shape, group = self._shape(weight), int(node.attributes["group"])
        depthwise = group > 1 and group == shape[0] and shape[1] == 1
        narrow = group == 1 and shape[1] < self.block  # images: plain on one side, in blocks on the other
        producer = self.producers.get(weight)
        if shape[0] % self.block or (producer is not None and producer.op == "DequantizeLinear"):
            return False
        if not (depthwise or narrow or (group == 1 and shape[1] % self.block == 0)) or (
            bias and len(self._shape(bias)) != 1
        ):
            return False
        inputs = [self._plain(x) if narrow else self._blocked(x)]
        attributes: dict[str, Any] = {
            name: _listed(node.attributes[name]) for name in ("strides", "pads", "dilations")
        }
        attributes |= {"group": group, "kernel_shape": list(shape[2:])}
        output, alone = f"{node.output}.blocked", self._alone(node.output)
        if alone is not None and alone.op == "BatchNormalization" and alone.inputs[0] == node.output:
            scale, shift = self._scale_and_shift(alone, None)
            if bias:
                moved = self._emit("Mul", [self._plain(bias), scale], f"{output}.moved")
                shift = self._emit("Add", [moved, shift], f"{output}.bias")
            kernel = self._kernel(weight, shape, scale, f"{output}.weight")
            made = self._emit("Conv", [*inputs, kernel, shift], f"{alone.output}.blocked", attributes, DOMAIN)
            self.folded.add(alone.output)
            self.blocked_names[alone.output] = self._taking_more(made)
            return True
        kernel = self._kernel(weight, shape, None, f"{output}.weight")
        about = self._about(node.output)
        if about:
            negative = self._negative(about)
            both = self._emit("Add", [self._plain(bias), negative], f"{output}.bias") if bias else negative
            centred = self._emit("Conv", [*inputs, kernel, both], f"{node.output}.centred", attributes, DOMAIN)
            self.centred[node.output] = (centred, about)
            return True
        made = self._emit(
            "Conv", [*inputs, kernel, *([self._plain(bias)] if bias else [])], output, attributes, DOMAIN
        )
        return self._put(node, self._taking_more(made))

    def _about(self, name: str) -> str:
        """The vector about which everybody who reads a value sees it, at least where it matters; "" where nobody."""
        if name in self.graph.outputs:
            return ""
        channels, found = self._shape(name)[1], set()
        for reader in self.readers.get(name, []):
            if reader.op in ("Sub", "Greater") and reader.inputs[0] == name:
                column = self.producers.get(reader.inputs[1])
                if column is None or column.op != "Reshape" or not self._column(reader.inputs[1], channels):
                    return ""
                source = column.inputs[0]
                if source not in self.graph.inputs or len(self._shape(source)) != 1:
                    return ""
                found.add(source)
            elif reader.op != "BatchNormalization" or reader.inputs[0] != name:
                return ""
        return found.pop() if len(found) == 1 else ""

    def _kernel(self, weight: str, shape: tuple[int, ...], scale: str | None, output: str) -> str:
        """A convolution's weight as blocks want it, times a number per output channel."""
        b, (out, per, height, width) = self.block, shape
        inner = b if per % b == 0 else 1
        apart = (out // b, b, per // inner, inner, height, width)
        order = (0, 2, 4, 5, 3, 1)
        if weight in self.graph.constants:
            stored = f"{weight}.kernel"
            array = plain(self.graph.constants[weight]).reshape(apart).transpose(order)
            together = (out // b, -1, b) if scale is not None else shape
            stored += ".rows" if scale is not None else ""
            self.weights[stored] = np.ascontiguousarray(array).reshape(together)
        else:
            opened = self._emit("Reshape", [self._plain(weight), self._integers(*apart)], f"{output}.apart")
            turned = self._emit("Transpose", [opened], f"{output}.turned", {"perm": list(order)})
            together = (out // b, -1, b) if scale is not None else shape
            stored = self._emit("Reshape", [turned, self._integers(*together)], f"{output}.stored")
        if scale is None:
            return stored
        row = self._emit("Reshape", [scale, self._integers(out // b, 1, b)], f"{output}.row")
        scaled = self._emit("Mul", [stored, row], f"{output}.scaled")
        return self._emit("Reshape", [scaled, self._integers(*shape)], output)

    def _scale_and_shift(self, node: Node, about: str | None) -> tuple[str, str]:
        """A BatchNorm as scale * (x - about) + shift, vectors both."""
        weight, bias, mean, variance = (self._plain(name) for name in node.inputs[1:])
        y = node.output
        safe = self._emit("Add", [variance, self._number(float(node.attributes["epsilon"]))], f"{y}.safe")
        scale = self._emit("Div", [weight, self._emit("Sqrt", [safe], f"{y}.deviation")], f"{y}.scale")
        if about == mean:
            return scale, bias
        apart = mean if about is None else self._emit("Sub", [mean, about], f"{y}.apart")
        moved = self._emit("Mul", [apart, scale], f"{y}.moved")
        return scale, self._emit("Sub", [bias, moved], f"{y}.shift")

    def _batch_normalization(self, node: Node) -> bool:
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self._there(x):
            return False
        about = None
        if x in self.centred:
            made, about = self.centred[x]
        else:
            made = self._blocked(x)
        scale, shift = self._scale_and_shift(node, about)
        return self._put(node, self._taking_more(self._depthwise(made, output, scale, shift, self._shape(x)[1])))

    def _averages(self, x: str, output: str) -> str:
        """The mean of every channel of every image: (N, C, 1, 1), plain."""
        made = self._emit("GlobalAveragePool", [self._blocked(x)], f"{output}.pooled", {}, DOMAIN)
        return self._emit("ReorderOutput", [made], f"{output}.averages", {"channels": self._shape(x)[1]}, DOMAIN)

    def _channel_mean(self, node: Node) -> bool:
        x = node.inputs[0]
        if not self._fits(x) or x not in self.blocked_names:
            return False
        averages = self._averages(x, node.output)
        self._emit("ReduceMean", [averages], node.output, {"axes": [0, 2, 3], "keepdims": 0})
        self.plain_names[node.output] = node.output
        return True

    def _reduce(self, node: Node) -> bool:
        """Means and sums over the image, and whatever else beside the channels."""
        x, axes = node.inputs[0], sorted(node.attributes["axes"])
        if not self._fits(x) or x not in self.blocked_names or axes[-2:] != [2, 3]:
            return False
        y, keep = node.output, int(node.attributes["keepdims"])
        found = self._averages(x, y)
        if node.op == "ReduceMean":
            self._emit("ReduceMean", [found], y, {"axes": axes, "keepdims": keep})
        else:
            size = self._number(float(math.prod(self._shape(x)[2:])))
            totals = self._emit("Mul", [found, size], f"{y}.totals")
            self._emit("ReduceSum", [totals, self._integers(*axes)], y, {"keepdims": keep})
        self.plain_names[y] = y
        return True

    def _max_pool(self, node: Node) -> bool:
        x, output = node.inputs[0], f"{node.output}.blocked"
        if not self._fits(x) or x not in self.blocked_names:
            return False
        attributes: dict[str, Any] = {
            name: _listed(node.attributes[name]) for name in ("kernel_shape", "strides", "pads")
        }
        attributes |= {"ceil_mode": int(node.attributes.get("ceil_mode", 0))}
        return self._put(node, self._emit("MaxPool", [self._blocked(x)], output, attributes, DOMAIN))

    def _reshape(self, node: Node) -> bool:
        """A vector that becomes a column is remembered as a vector."""
        source = self._shape(node.inputs[0])
        if len(source) == 1 and self._shape(node.output) == (1, source[0], 1, 1):
            self.vectors[node.output] = self._plain(node.inputs[0])
        return False


def _listed(value: Any) -> list[int]:
    return [int(number) for number in value]


def _node(op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any], domain: str) -> OnnxNode:
    raw = {name: attribute(name, value) for name, value in sorted(attributes.items())}
    return OnnxNode(op, f"{op}_{output}", tuple(inputs), (output,), raw, domain)
