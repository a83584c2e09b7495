"""Gradient rules: convolutions, matrix products, arithmetic and shape."""

from __future__ import annotations

import math

import torch

from edgetta.export.derivation import Derivation, DifferentiationError, rule
from edgetta.segments.graph import Node


@rule("Conv")
def conv(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """The transposed convolution; for stride 1 a plain one with the flipped, transposed kernel, which is faster."""
    if not d.constant(node.inputs[1]):
        return _conv_that_adapts(d, node, gradient)
    name, scale = d.weight(node.inputs[1])
    weight = d.forward.constants[name]
    strides, pads, dilations, group = (node.attributes[k] for k in ("strides", "pads", "dilations", "group"))
    size, result = d.shape(node.inputs[0])[2:], d.shape(node.output)[2:]
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(dilations, weight.shape[2:], strict=True)]
    turned = [reach[i % 2] - pads[i] for i in range(4)]
    # Scales per output channel lie along one axis of the turned kernel, but where groups mix several of both.
    along = 1 if group == 1 else 0 if group == weight.shape[0] and weight.shape[1] == 1 else None
    if list(strides) == [1, 1] and min(turned) >= 0 and (scale is None or along is not None):
        kernel = d.in_backward(f"{name}.turned", _turned(weight, group), scale, along or 0)
        attributes = {"strides": [1, 1], "pads": turned, "dilations": list(dilations), "group": group}
        return [d.backward.emit("Conv", gradient, kernel, **attributes)]
    extra = [size[i] - ((result[i] - 1) * strides[i] - pads[i] - pads[i + 2] + reach[i] + 1) for i in range(2)]
    back = d.backward.emit(
        "ConvTranspose",
        gradient,
        d.in_backward(name, weight, scale, 0),
        strides=list(strides),
        pads=list(pads),
        dilations=list(dilations),
        group=group,
        output_padding=extra,
    )
    return [back]


def _conv_that_adapts(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """A convolution whose weight is an input: its gradients by its own input, and by its weight."""
    x, weight = node.inputs[:2]
    kernel, rest = d.shape(weight)[2:], {k: node.attributes[k] for k in ("strides", "pads", "dilations", "group")}
    size, result = d.shape(x)[2:], d.shape(node.output)[2:]
    emit, attributes = d.backward.emit, {k: list(v) if k != "group" else v for k, v in rest.items()}
    reach = [rest["dilations"][i] * (kernel[i] - 1) for i in range(2)]
    pads, strides = rest["pads"], rest["strides"]
    turned = [reach[i % 2] - pads[i] for i in range(4)]
    if list(strides) == [1, 1] and min(turned) >= 0 and rest["group"] == 1:
        to_x = emit("Conv", gradient, _turned_input(d, d.save(weight, "float")), **{**attributes, "pads": turned})
    else:
        extra = [size[i] - ((result[i] - 1) * strides[i] - pads[i] - pads[i + 2] + reach[i] + 1) for i in range(2)]
        to_x = emit("ConvTranspose", gradient, d.save(weight, "float"), **attributes, output_padding=extra)
    to_weight = emit("ConvWeightGradient", d.save(x, "float"), gradient, kernel_shape=list(kernel), **attributes)
    to_bias = None
    if len(node.inputs) > 2 and node.inputs[2] and not d.constant(node.inputs[2]):
        to_bias = emit("ReduceSum", gradient, axes=[0, 2, 3], keepdims=0)
    return [to_x, to_weight, to_bias]


def _turned_input(d: Derivation, weight: str) -> str:
    """(O, I, k, l) -> (I, O, k, l), kernels turned by 180 degrees, of a weight that is a value of the backward."""
    emit, (out, inputs, height, width) = d.backward.emit, d.backward.shape(weight)
    if height * width > 1:
        places = height * width
        reverse = d.backward.constant(f"reverse.{places}", torch.eye(places).flip(0))
        flat = emit("MatMul", emit("Reshape", weight, shape=[out, inputs, places]), reverse)
        weight = emit("Reshape", flat, shape=[out, inputs, height, width])
    return emit("Transpose", weight, perm=[1, 0, 2, 3])


def _turned(weight: torch.Tensor, group: int) -> torch.Tensor:
    """(out, in / group, k, k) -> (in, out / group, k, k), kernels turned by 180 degrees."""
    out, per_group, height, width = weight.shape
    grouped = weight.reshape(group, out // group, per_group, height, width).transpose(1, 2)
    return grouped.reshape(group * per_group, out // group, height, width).flip(2, 3).contiguous()


@rule("MatMul")
def matmul(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    to_a = None if d.constant(a) else d.unbroadcast(d.backward.emit("MatMul", gradient, _transposed(d, b)), a)
    to_b = None if d.constant(b) else d.unbroadcast(d.backward.emit("MatMul", _transposed(d, a), gradient), b)
    return [to_a, to_b]


def _transposed(d: Derivation, name: str) -> str:
    if d.constant(name):
        stored, scale = d.weight(name)
        return d.in_backward(f"{stored}.transposed", d.forward.constants[stored].transpose(-1, -2), scale, 0)
    rank = len(d.shape(name))
    return d.backward.emit("Transpose", d.save(name, "float"), perm=[*range(rank - 2), rank - 1, rank - 2])


@rule("FakeQuantize")
def fake_quantize(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Straight through, as if nothing had been rounded: no residual (Bengio et al., 2013)."""
    return [gradient, None]


@rule("Add")
def add(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.unbroadcast(gradient, name) for name in node.inputs]


@rule("Sub")
def sub(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    to_b = None if d.constant(b) else d.backward.emit("Neg", d.unbroadcast(gradient, b))
    return [d.unbroadcast(gradient, a), to_b]


@rule("Mul")
def mul(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    return [_scaled(d, gradient, of=a, by=b), _scaled(d, gradient, of=b, by=a)]


def _scaled(d: Derivation, gradient: str, of: str, by: str) -> str | None:
    if d.constant(of):
        return None
    return d.unbroadcast(d.backward.emit("Mul", gradient, d.save(by, "float")), of)


@rule("Div")
def div(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    a, b = node.inputs
    quotient = d.backward.emit("Div", gradient, d.save(b, "float"))
    to_a = None if d.constant(a) else d.unbroadcast(quotient, a)
    if d.constant(b):
        return [to_a, None]
    to_b = d.backward.emit("Neg", d.backward.emit("Mul", quotient, d.save(node.output, "float")))
    return [to_a, d.unbroadcast(to_b, b)]


@rule("ReduceMean", "ReduceSum")
def reduce(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    shape, axes = d.shape(node.inputs[0]), node.attributes["axes"]
    kept = [1 if i in axes else size for i, size in enumerate(shape)]
    share = 1.0 / math.prod(shape[axis] for axis in axes) if node.op == "ReduceMean" else 1.0
    ones = torch.full([shape[i] if i in axes else 1 for i in range(len(shape))], share, dtype=torch.float64)
    name = d.backward.constant(f"spread.{node.op}.{'x'.join(map(str, ones.shape))}", ones)
    return [d.backward.emit("Mul", d.reshape(gradient, kept), name)]


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
    """Zeros where nothing was taken: between the elements where the step is not 1, then around them."""
    size, taken = list(d.shape(node.inputs[0])), list(d.shape(node.output))
    starts, steps = [0] * len(size), [1] * len(size)
    for axis, start, step in zip(*(node.attributes[k] for k in ("axes", "starts", "steps")), strict=True):
        starts[axis], steps[axis] = start, step
    stepped = [axis for axis, step in enumerate(steps) if step != 1]
    if stepped:
        if min(steps) < 1 or size[0] >= 0:
            raise DifferentiationError("a slice that runs backwards, or of turned axes, has no gradient rule")
        gradient = _stretch(d, gradient, taken, steps)
        reach = [min(taken[axis] * steps[axis], size[axis] - starts[axis]) for axis in stepped]
        zero = [0] * len(stepped)
        gradient = d.backward.emit("Slice", gradient, axes=stepped, starts=zero, ends=reach, steps=[1] * len(stepped))
    have = d.backward.shape(gradient)
    ends = [0 if size[i] < 0 else size[i] - starts[i] - have[i] for i in range(len(size))]
    return [d.backward.emit("Pad", gradient, pads=[*starts, *ends], value=0.0)]


def _stretch(d: Derivation, gradient: str, shape: list[int], steps: list[int]) -> str:
    """Element i of each axis moves to i * step, with zeros between: a new axis behind each, padded, then merged."""
    apart, after, merged = [0], [0], [0]  # the batch is axis 0 and keeps its place
    for size, step in zip(shape[1:], steps[1:], strict=True):
        apart += [size] if step == 1 else [size, 1]
        after += [0] if step == 1 else [0, step - 1]
        merged.append(size * step)
    wide = d.backward.emit("Reshape", gradient, shape=apart)
    wide = d.backward.emit("Pad", wide, pads=[0] * len(after) + after, value=0.0)
    return d.backward.emit("Reshape", wide, shape=merged)


@rule("Pad")
def pad(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    shape, pads = d.shape(node.inputs[0]), node.attributes["pads"]
    axes = [axis for axis in range(len(shape)) if pads[axis] or pads[axis + len(shape)]]
    if not axes:
        return [gradient]
    starts = [pads[axis] for axis in axes]
    ends = [pads[axis] + shape[axis] for axis in axes]
    return [d.backward.emit("Slice", gradient, axes=axes, starts=starts, ends=ends, steps=[1] * len(axes))]
