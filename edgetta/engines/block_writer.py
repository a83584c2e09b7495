"""Writes ONNX nodes for values in blocks of channels, and knows in which layouts each value of a graph is there.

`blocked.py` decides what becomes of each operator; here is how values change layout, how a number per channel is
applied, and how convolutions take on what follows them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgetta.engines.contract import Array
from edgetta.segments.graph import BATCH, Graph, Node
from edgetta.segments.onnx_model import BOOL, FLOAT, OnnxNode, attribute
from edgetta.segments.onnx_spelling import OPSET, Speller, plain

DOMAIN = "com.microsoft.nchwc"
_NONE: Mapping[str, Any] = {}


class BlockWriter:
    """The nodes and weights written so far, and the names of each value in plain layout and in blocks.

    Channels that do not fill their last block are padded there with zeros.

    inputs_in_blocks   inputs that come in blocks
    """

    def __init__(self, graph: Graph, block: int, inputs_in_blocks: Collection[str] = ()) -> None:
        self.graph, self.block = graph, block
        self.speller = Speller(graph, OPSET)
        self.nodes: list[OnnxNode] = []
        self.weights: dict[str, Array] = {name: plain(constant) for name, constant in graph.constants.items()}
        self.readers = graph.consumers()
        self.producers = graph.producers()
        self.plain_names = {name: name for name in (*graph.inputs, *graph.constants) if name not in inputs_in_blocks}
        self.blocked_names = {name: name for name in graph.inputs if name in inputs_in_blocks}
        self.centred: dict[str, tuple[str, str]] = {}  # value -> it minus a vector, in blocks, and that vector
        self._vectors: dict[str, str] = {}  # column (1, C, 1, 1) -> vector (C,)
        self._wide: dict[str, str] = {}  # vector (C,) -> padded
        self._fusable: set[str] = set()  # values in blocks that a convolution made which may take more on
        self._casts: dict[str, str] = {}
        self._taken: set[str] = set()

    # What a value is.

    def shape(self, name: str) -> tuple[int, ...]:
        return self.speller.shape(name)

    def whole_blocks(self, channels: int) -> int:
        """So many channels, padded."""
        return -(-channels // self.block) * self.block

    def blocked_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value as it lies in blocks."""
        n, channels, height, width = self.shape(name)
        return n, self.whole_blocks(channels), height, width

    def channels_fit(self, channels: int) -> bool:
        """Whether so many channels can lie in blocks: ONNX Runtime changes the layout of four at a time."""
        return channels % self.block == 0 or (channels > self.block and channels % 4 == 0)

    def fits(self, name: str) -> bool:
        """Whether a value can lie in blocks."""
        if not name or name not in self.graph.values:
            return False
        shape = self.shape(name)
        return len(shape) == 4 and shape[0] == BATCH and self.channels_fit(shape[1])

    def fills(self, name: str) -> bool:
        """Whether a value fills its blocks, so that nothing odd can come about in what is padded."""
        return self.shape(name)[1] % self.block == 0

    def boolean(self, name: str) -> bool:
        return name in self.graph.values and self.graph.values[name].dtype == "bool"

    def scalar(self, name: str) -> bool:
        return math.prod(self.shape(name)) == 1

    def column(self, name: str, channels: int) -> bool:
        """Whether a value is one number per channel, in the shape in which it broadcasts."""
        return self.shape(name) == (1, channels, 1, 1)

    def alone(self, name: str) -> Node | None:
        """The one node that reads a value which is no output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.graph.outputs else None

    # In which layouts it is there.

    def in_blocks(self, name: str) -> bool:
        """Whether a value is in blocks already."""
        return self.fits(name) and (name in self.blocked_names or name in self.centred)

    def to_blocks(self, name: str) -> bool:
        """Whether a value is in blocks, or can be brought into them."""
        return self.in_blocks(name) or (self.fits(name) and not self.boolean(name))

    def blocked(self, name: str) -> str:
        """The name of a value in blocks, where it is brought if it is not there yet."""
        if name not in self.blocked_names:
            output = f"{name}.blocked"
            if name in self.centred:
                centred, mean = self.centred[name]
                self.depthwise(centred, output, None, mean, self.shape(name)[1])
            else:
                self.emit("ReorderInput", [self.plain(name)], output, {}, DOMAIN)
            self.blocked_names[name] = output
        return self.blocked_names[name]

    def plain(self, name: str) -> str:
        """The name of a value in plain layout, which is brought into it if need be."""
        if not name or name in self.plain_names:
            return self.plain_names[name] if name else ""
        channels = {"channels": self.shape(name)[1]}
        output = f"{name}.plain" if name in self.graph.inputs else name
        if self.boolean(name):
            turned = self.emit("ReorderOutput", [self.cast(name)], f"{name}.turned", channels, DOMAIN)
            self.plain_names[name] = self.emit("Cast", [turned], output, {"to": BOOL})
        else:
            self.plain_names[name] = self.emit("ReorderOutput", [self.blocked(name)], output, channels, DOMAIN)
        return self.plain_names[name]

    def cast(self, mask: str) -> str:
        """A mask in blocks as zeros and ones."""
        if mask not in self._casts:
            self._casts[mask] = self.emit("Cast", [self.blocked(mask)], f"{mask}.ones", {"to": FLOAT})
        return self._casts[mask]

    def minus(self, x: str, vector: str) -> str:
        """x - vector by channel, in blocks, made once."""
        if x not in self.centred or self.centred[x][1] != vector:
            output = self.unused(f"{x}.centred")
            made = self.depthwise(self.blocked(x), output, None, self.negative(vector), self.shape(x)[1])
            self.centred[x] = (made, vector)
        return self.centred[x][0]

    def averages(self, x: str, output: str) -> str:
        """The mean of every channel of every image: (N, C, 1, 1), plain."""
        made = self.emit("GlobalAveragePool", [self.blocked(x)], f"{output}.pooled", {}, DOMAIN)
        return self.emit("ReorderOutput", [made], f"{output}.averages", {"channels": self.shape(x)[1]}, DOMAIN)

    # Numbers per channel: vectors (C,), and columns (1, C, 1, 1).

    def vector(self, column: str) -> str:
        """A column as a vector."""
        if column not in self._vectors:
            channels, name = self.shape(column)[1], f"{column}.vector"
            if column in self.graph.constants:
                self.weights[name] = plain(self.graph.constants[column]).reshape(channels)
            else:
                self.emit("Reshape", [self.plain(column), self.integers(channels)], name)
            self._vectors[column] = name
        return self._vectors[column]

    def remember(self, column: str, vector: str) -> None:
        """Note that a column is made of a vector."""
        self._vectors[column] = vector

    def negative(self, vector: str) -> str:
        return self.emit("Neg", [vector], self.unused(f"{vector}.negative"))

    def wide(self, vector: str, channels: int) -> str:
        """A vector with zeros for the channels that pad its blocks."""
        more = self.whole_blocks(channels) - channels
        if not more:
            return vector
        if vector not in self._wide:
            inputs = [vector, self.integers(0, more), self.number(0.0)]
            self._wide[vector] = self.emit("Pad", inputs, self.unused(f"{vector}.wide"))
        return self._wide[vector]

    def depthwise(self, x: str, output: str, scale: str | None, shift: str | None, channels: int) -> str:
        """scale * x + shift by channel; `x` and `output` are names of values in blocks, the others of vectors."""
        width = self.whole_blocks(channels)
        if scale is None:
            weight = f"ones.{width}.blocked"
            self.weights[weight] = np.ones((width, 1, 1, 1), np.float32)
        else:
            shape = self.integers(width, 1, 1, 1)
            weight = self.emit("Reshape", [self.wide(scale, channels), shape], self.unused(f"{output}.weight"))
        inputs = [x, weight] if shift is None else [x, weight, self.wide(shift, channels)]
        return self.emit("Conv", inputs, output, {"group": width, "kernel_shape": [1, 1]}, DOMAIN)

    def kernel(self, weight: str, narrow: bool, scale: str | None, output: str) -> tuple[str, list[int]]:
        """A convolution's weight (O, I, k, l) as blocks want it, times a number per output channel; and its shape.

        narrow   the input is plain, or the convolution depthwise: its channels have no blocks
        """
        b, (out, per, height, width) = self.block, self.shape(weight)
        shape = [self.whole_blocks(out), per if narrow else self.whole_blocks(per), height, width]
        inner = 1 if narrow else b
        apart = (shape[0] // b, b, shape[1] // inner, inner, height, width)
        order = (0, 2, 4, 5, 3, 1)
        stored = [shape[0] // b, -1, b] if scale is not None else shape
        more = [0] * 4 + [shape[0] - out, shape[1] - per, 0, 0]
        if weight in self.graph.constants:
            array = np.pad(plain(self.graph.constants[weight]), [(0, n) for n in more[4:]])
            name = f"{weight}.kernel"
            self.weights[name] = np.ascontiguousarray(array.reshape(apart).transpose(order)).reshape(shape)
            if scale is not None:
                name = self.emit("Reshape", [name, self.integers(*stored)], f"{output}.rows")
        else:
            source = self.plain(weight)
            if any(more):
                source = self.emit("Pad", [source, self.integers(*more), self.number(0.0)], f"{output}.padded")
            opened = self.emit("Reshape", [source, self.integers(*apart)], f"{output}.apart")
            turned = self.emit("Transpose", [opened], f"{output}.turned", {"perm": list(order)})
            name = self.emit("Reshape", [turned, self.integers(*stored)], f"{output}.stored")
        if scale is None:
            return name, shape
        row = self.emit("Reshape", [self.wide(scale, out), self.integers(shape[0] // b, 1, b)], f"{output}.row")
        scaled = self.emit("Mul", [name, row], f"{output}.scaled")
        return self.emit("Reshape", [scaled, self.integers(*shape)], output), shape

    # What a convolution takes on.

    def taking_more(self, output: str) -> str:
        """Note that the convolution that made a value may take a bias, a sum or an activation on."""
        self._fusable.add(output)
        return output

    def may_take(self, x: str, reader: Node, inputs: int) -> bool:
        """Whether what `reader`, alone, does with x can be done by the convolution that makes x, which has no
        activation yet and no more than so many inputs."""
        made = self.blocked_names.get(x, "")
        if made not in self._fusable or self.alone(x) is not reader:
            return False
        node = self.nodes[self._maker(made)]
        return len(node.inputs) <= inputs and "activation" not in node.attributes

    def take(self, x: str) -> OnnxNode:
        """The convolution that made x, which is written no longer."""
        made = self.blocked_names[x]
        self._fusable.discard(made)
        return self.nodes.pop(self._maker(made))

    def _maker(self, made: str) -> int:
        return next(i for i in range(len(self.nodes) - 1, -1, -1) if made in self.nodes[i].outputs)

    # Nodes.

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> str:
        """Write a node; returns its output."""
        self.nodes.append(node_of(op, inputs, output, attributes or {}, domain))
        self._taken.add(output)
        return output

    def write(self, node: OnnxNode) -> None:
        """Write a node that is made already."""
        self.nodes.append(node)
        self._taken.update(node.outputs)

    def spell(self, node: Node, names: Mapping[str, str]) -> None:
        """Write what a node of the graph is in ONNX, with other names for some values."""
        start = len(self.speller.nodes)
        self.speller.spell(node)
        for made in self.speller.nodes[start:]:
            inputs = tuple(names.get(name, name) for name in made.inputs)
            outputs = tuple(names.get(name, name) for name in made.outputs)
            self.write(replace(made, inputs=inputs, outputs=outputs))

    def unused(self, name: str) -> str:
        """A name that nothing has yet."""
        unused, count = name, 0
        while unused in self._taken:
            count += 1
            unused = f"{name}.{count}"
        return unused

    def number(self, value: float) -> str:
        name = f"number.{value!r}"
        self.weights[name] = np.array(value, np.float32)
        return name

    def integers(self, *numbers: int) -> str:
        name = "int." + ".".join(map(str, numbers))
        self.weights[name] = np.array(numbers, np.int64)
        return name


def node_of(op: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any], domain: str = "") -> OnnxNode:
    """A node with one output."""
    raw = {name: attribute(name, value) for name, value in sorted(attributes.items())}
    return OnnxNode(op, f"{op}_{output}", tuple(inputs), (output,), raw, domain)
