"""Derive the input gradient of a frozen segment, by reverse mode over its graph, one rule per operator.

A rule may extend the forward graph to make a residual and must express the gradient in operators that every engine
has. The residuals are what the exact gradient needs and no more: nothing for a convolution, one scale per channel for a
BatchNorm (statistics are constants), one bit per element for a ReLU, two bits for a 2x2 max-pool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from edgetta.errors import EdgettaError
from edgetta.export.batch_norm import Frozen
from edgetta.segments.contract import Residual, ResidualKind, SegmentGraphs
from edgetta.segments.graph import BATCH, Graph, GraphBuilder, Node

GRAD_Y = "grad_y"
_CONSTANT_IN_BACKWARD = ("ChannelMean", "ChannelVariance", "Greater", "Less", "Equal", "And", "Or", "Not")


class DifferentiationError(EdgettaError):
    """A frozen part holds an operator whose gradient edgetta does not know."""


class Derivation:
    """The forward graph being extended, the backward graph being built, and the residuals between them."""

    def __init__(self, graph: Graph) -> None:
        self.forward = GraphBuilder.of(graph, "r")
        self.backward = GraphBuilder("g")
        self.residuals: dict[str, Residual] = {}

    def save(self, name: str, kind: ResidualKind, low: float = 0.0, high: float = 1.0) -> str:
        """Make a forward value available to the backward graph, under the same name."""
        if name in self.forward.constants:
            return self.backward.constant(name, self.forward.constants[name])
        value = self.forward.values[name]
        if name not in self.residuals:
            self.residuals[name] = Residual(value, kind if value.per_sample else "scale", low, high)
            self.backward.values[name] = value
        return name

    def shape(self, name: str) -> tuple[int, ...]:
        return self.forward.shape(name)

    def reshape(self, gradient: str, shape: Sequence[int]) -> str:
        """Give a gradient the forward shape `shape`."""
        source = self.backward.shape(gradient)
        same = [size == BATCH and i < len(source) and source[i] == BATCH for i, size in enumerate(shape)]
        return self.backward.emit("Reshape", gradient, shape=[0 if same[i] else size for i, size in enumerate(shape)])


Rule = Callable[[Derivation, Node, str], list[str | None]]
RULES: dict[str, Rule] = {}


def differentiate(frozen: Frozen, needs_gradient: bool = True) -> SegmentGraphs:
    """The forward, backward and recompute graphs of a settled segment.

    Without `needs_gradient` (the stem, whose input is the image) there is no backward and there are no residuals.
    Raises `DifferentiationError` naming an operator that has no rule.
    """
    graph = frozen.graph
    if not needs_gradient:
        return SegmentGraphs(graph, None, None, (), frozen.state, frozen.initial_state, frozen.initial_biases)
    wanted = ["x", *frozen.initial_biases]
    active = _active(graph, wanted)
    derivation = Derivation(graph)
    output = graph.outputs[0]
    gradients: dict[str, str] = {output: derivation.backward.input(GRAD_Y, graph.values[output].shape)}
    for node in reversed(graph.nodes):
        gradient = gradients.pop(node.output, None) if node.output not in wanted else None
        if gradient is None or node.output not in active:
            continue
        rule = RULES.get(node.op)
        if rule is None:
            raise DifferentiationError(f"operator {node.op} has no gradient rule in edgetta.export.differentiate")
        for name, contribution in zip(node.inputs, rule(derivation, node, gradient), strict=False):
            if contribution is None or name not in active:
                continue
            old = gradients.get(name)
            gradients[name] = contribution if old is None else derivation.backward.emit("Add", old, contribution)
    missing = [name for name in wanted if name not in gradients]
    if missing:
        raise DifferentiationError(f"the segment's output does not depend on {missing[0]!r}")

    # Rules run eagerly for every input; what only inactive inputs needed is pruned here, residuals included.
    derivation.backward.inputs = [*derivation.residuals, GRAD_Y]
    backward = derivation.backward.graph([gradients[name] for name in wanted])
    used = {name for node in backward.nodes for name in node.inputs} | set(backward.outputs)
    residuals = tuple(r for name, r in derivation.residuals.items() if name in used)
    backward = Graph(
        (*(r.value.name for r in residuals), GRAD_Y),
        backward.outputs,
        backward.nodes,
        backward.values,
        backward.constants,
    )
    forward = derivation.forward.graph([*graph.outputs, *(r.value.name for r in residuals)])
    return SegmentGraphs(
        forward,
        backward,
        _recompute(forward, backward),
        residuals,
        frozen.state,
        frozen.initial_state,
        frozen.initial_biases,
    )


def _recompute(forward: Graph, backward: Graph) -> Graph:
    """Forward and backward in one graph, from the segment's input instead of its residuals."""
    fused = Graph(
        (*forward.inputs, GRAD_Y),
        backward.outputs,
        (*forward.nodes, *backward.nodes),
        {**forward.values, **backward.values},
        {**forward.constants, **backward.constants},
    )
    return fused.pruned()


def _active(graph: Graph, wanted: Sequence[str]) -> set[str]:
    """Values that depend on a wanted input through something other than statistics."""
    active = set(wanted)
    for node in graph.nodes:
        differentiable = node.inputs[:1] if node.op == "BatchNormalization" else node.inputs
        if node.op not in _CONSTANT_IN_BACKWARD and active.intersection(differentiable):
            active.add(node.output)
    return active


def rule(*operators: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for op in operators:
            RULES[op] = function
        return function

    return register


# --- convolutions and products ------------------------------------------------------------------------------------


@rule("Conv")
def conv(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """The transposed convolution; for stride 1 a plain one with the flipped, transposed kernel, which is faster."""
    name = node.inputs[1]
    weight = d.forward.constants[name]
    strides, pads, dilations, group = (node.attributes[k] for k in ("strides", "pads", "dilations", "group"))
    size, result = d.shape(node.inputs[0])[2:], d.shape(node.output)[2:]
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(dilations, weight.shape[2:], strict=True)]
    turned = [reach[i % 2] - pads[i] for i in range(4)]
    if list(strides) == [1, 1] and min(turned) >= 0:
        kernel = d.backward.constant(f"{name}.turned", _turned(weight, group))
        return [
            d.backward.emit(
                "Conv", gradient, kernel, strides=[1, 1], pads=turned, dilations=list(dilations), group=group
            )
        ]
    extra = [size[i] - ((result[i] - 1) * strides[i] - pads[i] - pads[i + 2] + reach[i] + 1) for i in range(2)]
    return [
        d.backward.emit(
            "ConvTranspose",
            gradient,
            d.backward.constant(name, weight),
            strides=list(strides),
            pads=list(pads),
            dilations=list(dilations),
            group=group,
            output_padding=extra,
        )
    ]  # fmt: skip


def _turned(weight: torch.Tensor, group: int) -> torch.Tensor:
    """(out, in / group, k, k) -> (in, out / group, k, k), kernels turned by 180 degrees."""
    out, per_group, height, width = weight.shape
    grouped = weight.reshape(group, out // group, per_group, height, width).transpose(1, 2)
    return grouped.reshape(group * per_group, out // group, height, width).flip(2, 3).contiguous()


@rule("MatMul")
def matmul(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    to_a = d.backward.emit("MatMul", gradient, _transposed(d, b))
    if b in d.forward.constants:
        return [to_a, None]
    return [to_a, d.backward.emit("MatMul", _transposed(d, a), gradient)]


def _transposed(d: Derivation, name: str) -> str:
    if name in d.forward.constants:
        return d.backward.constant(f"{name}.transposed", d.forward.constants[name].transpose(-1, -2).contiguous())
    rank = len(d.shape(name))
    return d.backward.emit("Transpose", d.save(name, "float"), perm=[*range(rank - 2), rank - 1, rank - 2])


# --- normalisation ------------------------------------------------------------------------------------------------


@rule("BatchNormalization")
def batch_normalization(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Statistics are constants: one scale per channel, weight / sqrt(var + epsilon)."""
    _, scale, _, _, var = node.inputs
    rank = len(d.shape(node.output))
    column = [1, -1, *([1] * (rank - 2))]
    if var in d.forward.constants:
        factor = d.forward.constants[scale] / torch.sqrt(d.forward.constants[var] + node.attributes["epsilon"])
        kept = d.backward.constant(f"{scale}.scale", factor.reshape(column))
        return [d.backward.emit("Mul", gradient, kept)]
    forward = d.forward
    deviation = forward.emit("Sqrt", forward.emit("Add", var, forward.scalar(node.attributes["epsilon"])))
    kept = d.save(forward.emit("Div", scale, deviation), "scale")
    channels = d.shape(node.output)[1]
    return [d.backward.emit("Mul", gradient, d.backward.emit("Reshape", kept, shape=[1, channels, *column[2:]]))]


# --- activations --------------------------------------------------------------------------------------------------


@rule("Relu")
def relu(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    mask = d.forward.emit("Greater", node.output, d.forward.scalar(0.0))
    return [d.backward.emit("Masked", gradient, d.save(mask, "mask"))]


@rule("Clip")
def clip(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    low, high = node.attributes["min"], node.attributes["max"]
    return [d.backward.emit("Masked", gradient, d.save(_inside(d, node.output, low, high), "mask"))]


@rule("HardSigmoid")
def hard_sigmoid(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    mask = d.save(_inside(d, node.output, 0.0, 1.0), "mask")
    return [
        d.backward.emit("Masked", d.backward.emit("Mul", gradient, d.backward.scalar(node.attributes["alpha"])), mask)
    ]


def _inside(d: Derivation, name: str, low: float, high: float) -> str:
    above = d.forward.emit("Greater", name, d.forward.scalar(low))
    return d.forward.emit("And", above, d.forward.emit("Less", name, d.forward.scalar(high)))


def _smooth(low: float, high: float, derivative: Callable[[GraphBuilder, str, str], str]) -> Rule:
    """A smooth activation: its derivative, which lies in [low, high], is kept in eight bits."""

    def smooth(d: Derivation, node: Node, gradient: str) -> list[str | None]:
        slope = derivative(d.forward, node.inputs[0], node.output)
        return [d.backward.emit("Mul", gradient, d.save(slope, "code", low, high))]

    return smooth


def _silu(f: GraphBuilder, x: str, y: str) -> str:
    """s + y (1 - s) with s = sigmoid(x)"""
    s = f.emit("Sigmoid", x)
    return f.emit("Add", s, f.emit("Mul", y, f.emit("Sub", f.scalar(1.0), s)))


def _gelu(f: GraphBuilder, x: str, y: str) -> str:
    """Phi(x) + x phi(x)"""
    cdf = f.emit(
        "Mul", f.emit("Add", f.emit("Erf", f.emit("Mul", x, f.scalar(math.sqrt(0.5)))), f.scalar(1.0)), f.scalar(0.5)
    )
    bell = f.emit("Exp", f.emit("Mul", f.emit("Mul", x, x), f.scalar(-0.5)))
    return f.emit("Add", cdf, f.emit("Mul", f.emit("Mul", x, bell), f.scalar(1.0 / math.sqrt(2.0 * math.pi))))


def _hard_swish(f: GraphBuilder, x: str, y: str) -> str:
    """(2 x + 3) / 6 between -3 and 3, 0 below, 1 above"""
    line = f.emit("Add", f.emit("Mul", x, f.scalar(1.0 / 3.0)), f.scalar(0.5))
    below = f.emit("Greater", x, f.scalar(-3.0))
    above = f.emit("Less", x, f.scalar(3.0))
    return f.emit("Masked", f.emit("Where", above, line, f.scalar(1.0)), below)


def _sigmoid(f: GraphBuilder, x: str, y: str) -> str:
    return f.emit("Mul", y, f.emit("Sub", f.scalar(1.0), y))


def _tanh(f: GraphBuilder, x: str, y: str) -> str:
    return f.emit("Sub", f.scalar(1.0), f.emit("Mul", y, y))


RULES["Silu"] = _smooth(-0.0999, 1.0999, _silu)
RULES["Gelu"] = _smooth(-0.1290, 1.1290, _gelu)
RULES["HardSwish"] = _smooth(-0.5, 1.5, _hard_swish)
RULES["Sigmoid"] = _smooth(0.0, 0.25, _sigmoid)
RULES["Tanh"] = _smooth(0.0, 1.0, _tanh)


@rule("Exp")
def exp(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Mul", gradient, d.save(node.output, "float"))]


@rule("Sqrt")
def sqrt(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    half = d.backward.emit("Mul", gradient, d.backward.scalar(0.5))
    return [d.backward.emit("Div", half, d.save(node.output, "float"))]


@rule("Reciprocal")
def reciprocal(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    y = d.save(node.output, "float")
    return [d.backward.emit("Neg", d.backward.emit("Mul", gradient, d.backward.emit("Mul", y, y)))]


@rule("Neg")
def neg(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Neg", gradient)]


@rule("Softmax")
def softmax(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    y = d.save(node.output, "float")
    total = d.backward.emit(
        "ReduceSum", d.backward.emit("Mul", gradient, y), axes=[node.attributes["axis"]], keepdims=1
    )
    return [d.backward.emit("Mul", d.backward.emit("Sub", gradient, total), y)]


# --- arithmetic ---------------------------------------------------------------------------------------------------


@rule("Add")
def add(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [_unbroadcast(d, gradient, name) for name in node.inputs]


@rule("Sub")
def sub(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    to_b = None if b in d.forward.constants else d.backward.emit("Neg", _unbroadcast(d, gradient, b))
    return [_unbroadcast(d, gradient, a), to_b]


@rule("Mul")
def mul(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    return [_scaled(d, gradient, of=a, by=b), _scaled(d, gradient, of=b, by=a)]


def _scaled(d: Derivation, gradient: str, of: str, by: str) -> str | None:
    if of in d.forward.constants:
        return None
    return _unbroadcast(d, d.backward.emit("Mul", gradient, d.save(by, "float")), of)


@rule("Div")
def div(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    quotient = d.backward.emit("Div", gradient, d.save(b, "float"))
    to_a = None if a in d.forward.constants else _unbroadcast(d, quotient, a)
    if b in d.forward.constants:
        return [to_a, None]
    return [
        to_a,
        _unbroadcast(d, d.backward.emit("Neg", d.backward.emit("Mul", quotient, d.save(node.output, "float"))), b),
    ]


def _unbroadcast(d: Derivation, gradient: str, name: str) -> str:
    """Sum a gradient over the axes along which `name` was broadcast."""
    if name in d.forward.constants:
        return gradient
    target, source = d.shape(name), d.backward.shape(gradient)
    padded = (1,) * (len(source) - len(target)) + target
    axes = [i for i, (have, want) in enumerate(zip(source, padded, strict=True)) if want == 1 and have != 1]
    if axes:
        gradient = d.backward.emit("ReduceSum", gradient, axes=axes, keepdims=1)
    return gradient if len(target) == len(source) else d.reshape(gradient, target)


@rule("ReduceMean", "ReduceSum")
def reduce(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    shape, axes = d.shape(node.inputs[0]), node.attributes["axes"]
    kept = [1 if i in axes else size for i, size in enumerate(shape)]
    count = math.prod(shape[axis] for axis in axes)
    ones = torch.full([shape[i] if i in axes else 1 for i in range(len(shape))], 1.0)
    if node.op == "ReduceMean":
        ones /= count
    name = d.backward.constant(f"spread.{node.op}.{'x'.join(map(str, ones.shape))}", ones)
    return [d.backward.emit("Mul", d.reshape(gradient, kept), name)]


# --- pooling ------------------------------------------------------------------------------------------------------


@rule("MaxPool")
def max_pool(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Which element of the window won, in binary: ceil(log2(k * k)) masks per output element; the first winner counts."""
    x, y = node.inputs[0], node.output
    (rows, columns), strides, pads = (node.attributes[k] for k in ("kernel_shape", "strides", "pads"))
    f, b = d.forward, d.backward
    size, result = d.shape(x)[2:], d.shape(y)[2:]
    ends = [(result[i] - 1) * strides[i] + (rows, columns)[i] for i in range(2)]  # extent read, pads included
    after = [max(0, ends[i] - size[i] - pads[i]) for i in range(2)]
    padded = x
    if any(pads[:2]) or any(after):
        padded = f.emit("Pad", x, pads=[0, 0, *pads[:2], 0, 0, *after], value=-3.0e38)
    offsets = [(i, j) for i in range(rows) for j in range(columns)]
    winners, taken = [], ""
    for i, j in offsets:
        window = f.emit(
            "Slice",
            padded,
            axes=[2, 3],
            starts=[i, j],
            ends=[i + (result[0] - 1) * strides[0] + 1, j + (result[1] - 1) * strides[1] + 1],
            steps=list(strides),
        )  # fmt: skip
        equal = f.emit("Equal", window, y)
        winners.append(equal if not taken else f.emit("And", equal, f.emit("Not", taken)))
        taken = equal if not taken else f.emit("Or", taken, equal)
    planes = []
    for bit in range(max(1, math.ceil(math.log2(len(offsets))))):
        plane = ""
        for number, winner in enumerate(winners):
            if number >> bit & 1:
                plane = winner if not plane else f.emit("Or", plane, winner)
        planes.append(d.save(plane, "mask"))
    pieces = []
    for number in range(len(offsets)):
        chosen = ""
        for bit, plane in enumerate(planes):
            digit = plane if number >> bit & 1 else b.emit("Not", plane)
            chosen = digit if not chosen else b.emit("And", chosen, digit)
        piece = b.emit("Masked", gradient, chosen)
        channels = d.shape(y)[1]
        pieces.append(b.emit("Reshape", piece, shape=[0, channels, 1, *result]))
    stacked = b.emit("Reshape", b.emit("Concat", *pieces, axis=2), shape=[0, channels * len(offsets), *result])
    kernel = torch.eye(len(offsets)).reshape(len(offsets), 1, rows, columns).repeat(channels, 1, 1, 1)
    spread = _spread(d, stacked, kernel, channels, strides, [max(size[i] + pads[i], ends[i]) for i in range(2)])
    return [_crop(d, spread, pads[:2], size)]


@rule("AveragePool")
def average_pool(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    kernel_shape, strides, pads = (node.attributes[k] for k in ("kernel_shape", "strides", "pads"))
    channels, *size = d.shape(node.inputs[0])[1:]
    if node.attributes["ceil_mode"] or (any(pads) and not node.attributes["count_include_pad"]):
        raise DifferentiationError("average pooling with ceil_mode or uncounted padding has no gradient rule")
    kernel = torch.full((channels, 1, *kernel_shape), 1.0 / math.prod(kernel_shape))
    spread = _spread(d, gradient, kernel, channels, strides, [size[i] + 2 * pads[i] for i in range(2)])
    return [_crop(d, spread, pads[:2], size)]


def _spread(
    d: Derivation, gradient: str, kernel: torch.Tensor, channels: int, strides: Sequence[int], size: Sequence[int]
) -> str:
    """Depthwise transposed convolution that fills at least `size`."""
    result, window = d.backward.shape(gradient)[2:], kernel.shape[2:]
    reached = [(result[i] - 1) * strides[i] + window[i] for i in range(2)]
    short = [max(0, size[i] - reached[i]) for i in range(2)]
    name = d.backward.constant(f"spread.{'x'.join(map(str, kernel.shape))}", kernel)
    spread = d.backward.emit(
        "ConvTranspose", gradient, name, strides=list(strides), pads=[0] * 4, dilations=[1, 1], group=channels,
        output_padding=[0, 0],
    )  # fmt: skip
    return d.backward.emit("Pad", spread, pads=[0, 0, 0, 0, 0, 0, *short], value=0.0) if any(short) else spread


def _crop(d: Derivation, gradient: str, starts: Sequence[int], size: Sequence[int]) -> str:
    if list(d.backward.shape(gradient)[2:]) == list(size) and not any(starts):
        return gradient
    ends = [start + length for start, length in zip(starts, size, strict=True)]
    return d.backward.emit("Slice", gradient, axes=[2, 3], starts=list(starts), ends=ends, steps=[1, 1])


# --- shape --------------------------------------------------------------------------------------------------------


@rule("Reshape")
def reshape(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.reshape(gradient, d.shape(node.inputs[0]))]


@rule("Transpose")
def transpose(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    perm = node.attributes["perm"]
    return [d.backward.emit("Transpose", gradient, perm=[perm.index(i) for i in range(len(perm))])]


@rule("Concat")
def concat(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    axis, start = node.attributes["axis"], 0
    pieces: list[str | None] = []
    for name in node.inputs:
        end = start + d.shape(name)[axis]
        pieces.append(d.backward.emit("Slice", gradient, axes=[axis], starts=[start], ends=[end], steps=[1]))
        start = end
    return pieces


@rule("Slice")
def slice_(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Zeros where nothing was taken: padding, after spreading by the step."""
    shape = d.shape(node.inputs[0])
    starts, ends = [0] * len(shape), [0] * len(shape)
    steps = [1] * len(shape)
    for axis, start, step in zip(*(node.attributes[k] for k in ("axes", "starts", "steps")), strict=True):
        starts[axis], steps[axis] = start, step
    if any(step != 1 for step in steps):
        if len(shape) != 4 or steps[:2] != [1, 1]:
            raise DifferentiationError("a strided slice is differentiated only along height and width")
        channels = d.shape(node.output)[1]
        gradient = _spread(d, gradient, torch.ones(channels, 1, 1, 1), channels, steps[2:], [1, 1])
    for axis, size in enumerate(shape):
        if size != BATCH:
            ends[axis] = size - starts[axis] - d.backward.shape(gradient)[axis]
    return [d.backward.emit("Pad", gradient, pads=[*starts, *ends], value=0.0)]


@rule("Pad")
def pad(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    shape, pads = d.shape(node.inputs[0]), node.attributes["pads"]
    axes = [axis for axis in range(len(shape)) if pads[axis] or pads[axis + len(shape)]]
    if not axes:
        return [gradient]
    starts = [pads[axis] for axis in axes]
    ends = [pads[axis] + shape[axis] for axis in axes]
    return [d.backward.emit("Slice", gradient, axes=axes, starts=starts, ends=ends, steps=[1] * len(axes))]


@rule("Where")
def where(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    condition = d.save(node.inputs[0], "mask")
    to_a = _unbroadcast(d, d.backward.emit("Masked", gradient, condition), node.inputs[1])
    to_b = _unbroadcast(d, d.backward.emit("Masked", gradient, d.backward.emit("Not", condition)), node.inputs[2])
    return [None, to_a, to_b]


@rule("Masked")
def masked(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Masked", gradient, d.save(node.inputs[1], "mask")), None]
