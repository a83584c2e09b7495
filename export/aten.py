"""Lowering rules: one torch operator at a time, from `torch.export`'s vocabulary to that of `Graph`.

A rule takes the lowering, the traced result's fake tensor (for shapes), and the call's arguments, where activations
are names (str) and weights are tensors. It returns the name of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgetta.segments.graph import BATCH, GraphBuilder

Activation = str
Operand = str | Tensor | float | int


class Lowering:
    """The graph under construction and the names of the model's weights."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("v")
        self.names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # keeps ids valid

    def operand(self, value: Operand) -> str:
        """The graph name of an activation, a weight or a number."""
        if isinstance(value, str):
            return value
        if isinstance(value, Tensor):
            self._kept.append(value)
            name = self.names.get(id(value), f"constant.{len(self.builder.constants)}")
            return self.builder.constant(name, value.float() if value.is_floating_point() else value.to(torch.float32))
        return self.builder.scalar(float(value))

    def weight(self, value: Tensor | None) -> str:
        return "" if value is None else self.operand(value)

    def rank(self, name: str) -> int:
        return len(self.builder.shape(name))

    def emit(self, op: str, *inputs: Operand, **attributes: Any) -> str:
        return self.builder.emit(op, *(self.operand(i) for i in inputs), **attributes)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def _pair(value: int | Sequence[int]) -> list[int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * 2 if len(sizes) == 1 else sizes


def _shape(fake: Any) -> list[int]:
    """The traced result's shape with the batch written as BATCH."""
    shape = [int(size) if isinstance(size, int) else BATCH for size in fake.shape]
    if any(not isinstance(size, int) and not str(size).isidentifier() for size in fake.shape):
        raise ValueError(f"the batch is merged with another dimension, got {tuple(fake.shape)}")
    return shape


def _reshape(lower: Lowering, x: str, shape: Sequence[int]) -> str:
    """Reshape to `shape`, in which BATCH may stand once, at any place."""
    source = lower.builder.shape(x)
    same = [size == BATCH and i < len(source) and source[i] == BATCH for i, size in enumerate(shape)]
    return lower.emit("Reshape", x, shape=[0 if same[i] else size for i, size in enumerate(shape)])


# --- linear operators ---------------------------------------------------------------------------------------------


@rule("aten.conv2d.default")
def conv2d(
    lower: Lowering,
    fake: Any,
    x: Activation,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    pads = _pair(padding)
    return _conv(lower, x, weight, bias, _pair(stride), [*pads, *pads], _pair(dilation), groups)


@rule("aten.conv2d.padding")
def conv2d_named_padding(
    lower: Lowering,
    fake: Any,
    x: Activation,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    dilations = _pair(dilation)
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    starts = [size // 2 for size in total]
    ends = [size - start for size, start in zip(total, starts, strict=True)]
    return _conv(lower, x, weight, bias, _pair(stride), [*starts, *ends], dilations, groups)


@rule("aten.convolution.default")
def convolution(
    lower: Lowering,
    fake: Any,
    x: Activation,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> str:
    if transposed:
        raise ValueError("transposed convolutions in the backbone are not supported")
    return conv2d(lower, fake, x, weight, bias, stride, padding, dilation, groups)


def _conv(
    lower: Lowering,
    x: str,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
) -> str:
    inputs = [x, lower.operand(weight)] + ([lower.operand(bias)] if bias is not None else [])
    return lower.builder.emit("Conv", *inputs, strides=strides, pads=pads, dilations=dilations, group=groups)


@rule("aten.linear.default")
def linear(lower: Lowering, fake: Any, x: Activation, weight: Tensor, bias: Tensor | None = None) -> str:
    transposed = weight.t().contiguous()
    lower.names[id(transposed)] = lower.names.get(id(weight), "linear") + ".t"
    y = lower.emit("MatMul", x, transposed)
    return lower.emit("Add", y, bias) if bias is not None else y


@rule("aten.addmm.default")
def addmm(lower: Lowering, fake: Any, bias: Operand, a: Operand, b: Operand) -> str:
    return lower.emit("Add", lower.emit("MatMul", a, b), bias)


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(lower: Lowering, fake: Any, a: Operand, b: Operand) -> str:
    return lower.emit("MatMul", a, b)


# --- normalisation ------------------------------------------------------------------------------------------------


@rule("aten._native_batch_norm_legit_no_training.default")
def batch_norm(
    lower: Lowering,
    fake: Any,
    x: Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[str, None, None]:
    scale = weight if weight is not None else torch.ones_like(mean)
    shift = bias if bias is not None else torch.zeros_like(mean)
    return lower.emit("BatchNormalization", x, scale, shift, mean, var, epsilon=float(eps)), None, None


@rule("aten.layer_norm.default")
def layer_norm(
    lower: Lowering,
    fake: Any,
    x: Activation,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    rank = lower.rank(x)
    axes = list(range(rank - len(normalized_shape), rank))
    return _affine(lower, _standardise(lower, x, axes, eps), weight, bias)


@rule("aten.group_norm.default")
def group_norm(
    lower: Lowering,
    fake: Any,
    x: Activation,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    shape = list(lower.builder.shape(x))
    inner = math.prod(shape[1:]) // groups
    y = lower.emit("Reshape", x, shape=[0, groups, inner])
    y = lower.emit("Reshape", _standardise(lower, y, [2], eps), shape=[0, *shape[1:]])
    column = (1, shape[1], *([1] * (len(shape) - 2)))
    return _affine(
        lower, y, None if weight is None else weight.reshape(column), None if bias is None else bias.reshape(column)
    )


def _standardise(lower: Lowering, x: str, axes: list[int], eps: float) -> str:
    centred = lower.emit("Sub", x, lower.emit("ReduceMean", x, axes=axes, keepdims=1))
    variance = lower.emit("ReduceMean", lower.emit("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = lower.emit("Sqrt", lower.emit("Add", variance, float(eps)))
    return lower.emit("Mul", centred, lower.emit("Reciprocal", deviation))


def _affine(lower: Lowering, x: str, weight: Tensor | None, bias: Tensor | None) -> str:
    y = x if weight is None else lower.emit("Mul", x, weight)
    return y if bias is None else lower.emit("Add", y, bias)


# --- activations --------------------------------------------------------------------------------------------------


def _unary(op: str, **attributes: float) -> Rule:
    def lowered(lower: Lowering, fake: Any, x: Activation, *_: Any, **__: Any) -> str:
        return lower.emit(op, x, **attributes)

    return lowered


RULES["aten.relu.default"] = _unary("Relu")
RULES["aten.relu6.default"] = _unary("Clip", min=0.0, max=6.0)
RULES["aten.silu.default"] = _unary("Silu")
RULES["aten.sigmoid.default"] = _unary("Sigmoid")
RULES["aten.tanh.default"] = _unary("Tanh")
RULES["aten.exp.default"] = _unary("Exp")
RULES["aten.sqrt.default"] = _unary("Sqrt")
RULES["aten.reciprocal.default"] = _unary("Reciprocal")
RULES["aten.neg.default"] = _unary("Neg")
RULES["aten.erf.default"] = _unary("Erf")
RULES["aten.hardswish.default"] = _unary("HardSwish")
RULES["aten.hardsigmoid.default"] = _unary("HardSigmoid", alpha=1.0 / 6.0, beta=0.5)


@rule("aten.gelu.default")
def gelu(lower: Lowering, fake: Any, x: Activation, approximate: str = "none", **keywords: str) -> str:
    if keywords.get("approximate", approximate) == "none":
        return lower.emit("Gelu", x)
    cube = lower.emit("Mul", lower.emit("Mul", x, x), x)
    inner = lower.emit("Mul", lower.emit("Add", x, lower.emit("Mul", cube, 0.044715)), math.sqrt(2.0 / math.pi))
    return lower.emit("Mul", lower.emit("Mul", x, 0.5), lower.emit("Add", lower.emit("Tanh", inner), 1.0))


@rule("aten.hardtanh.default", "aten.clamp.default")
def hardtanh(lower: Lowering, fake: Any, x: Activation, low: float | None = -1.0, high: float | None = 1.0) -> str:
    if high is None and low == 0:
        return lower.emit("Relu", x)
    return lower.emit(
        "Clip", x, min=float(-3.4e38 if low is None else low), max=float(3.4e38 if high is None else high)
    )


@rule("aten.leaky_relu.default")
def leaky_relu(lower: Lowering, fake: Any, x: Activation, slope: float = 0.01) -> str:
    return lower.emit("Sub", lower.emit("Relu", x), lower.emit("Mul", lower.emit("Relu", lower.emit("Neg", x)), slope))


@rule("aten._softmax.default", "aten.softmax.int")
def softmax(lower: Lowering, fake: Any, x: Activation, axis: int, *_: Any) -> str:
    return lower.emit("Softmax", x, axis=axis % lower.rank(x))


@rule("aten.scaled_dot_product_attention.default")
def attention(
    lower: Lowering,
    fake: Any,
    query: Activation,
    key: Activation,
    value: Activation,
    mask: Operand | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> str:
    if causal:
        raise ValueError("causal attention is not supported")
    shape = lower.builder.shape(query)
    rank = len(shape)
    factor = scale if scale is not None else 1.0 / math.sqrt(shape[-1])
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    scores = lower.emit("MatMul", lower.emit("Mul", query, factor), lower.emit("Transpose", key, perm=swapped))
    if mask is not None:
        scores = lower.emit("Add", scores, mask)
    return lower.emit("MatMul", lower.emit("Softmax", scores, axis=rank - 1), value)


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _binary(op: str) -> Rule:
    def lowered(lower: Lowering, fake: Any, a: Operand, b: Operand, *, alpha: float = 1) -> str:
        other: Operand = lower.emit("Mul", b, alpha) if alpha != 1 else b
        return lower.emit(op, a, other)

    return lowered


for _name, _op in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items():
    RULES[f"aten.{_name}.Tensor"] = RULES[f"aten.{_name}.Scalar"] = _binary(_op)


@rule("aten.rsub.Scalar")
def rsub(lower: Lowering, fake: Any, a: Activation, b: float) -> str:
    return lower.emit("Sub", b, a)


@rule("aten.mean.dim")
def mean(
    lower: Lowering, fake: Any, x: Activation, axes: Sequence[int] | None, keepdim: bool = False, **_: Any
) -> str:
    return lower.emit("ReduceMean", x, axes=_axes(lower, x, axes), keepdims=int(keepdim))


@rule("aten.sum.dim_IntList")
def sum_(
    lower: Lowering, fake: Any, x: Activation, axes: Sequence[int] | None, keepdim: bool = False, **_: Any
) -> str:
    return lower.emit("ReduceSum", x, axes=_axes(lower, x, axes), keepdims=int(keepdim))


def _axes(lower: Lowering, x: str, axes: Sequence[int] | None) -> list[int]:
    rank = lower.rank(x)
    chosen = sorted(axis % rank for axis in (axes if axes else range(rank)))
    if BATCH in (lower.builder.shape(x)[axis] for axis in chosen):
        raise ValueError("a mean or sum over the batch is not supported")
    return chosen


# --- pooling ------------------------------------------------------------------------------------------------------


@rule("aten.max_pool2d.default")
def max_pool2d(
    lower: Lowering,
    fake: Any,
    x: Activation,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> str:
    if _pair(dilation) != [1, 1]:
        raise ValueError("dilated max-pooling is not supported")
    pads = _pair(padding)
    return lower.emit(
        "MaxPool",
        x,
        kernel_shape=_pair(kernel),
        strides=_pair(stride or kernel),
        pads=[*pads, *pads],
        ceil_mode=int(ceil_mode),
    )


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    lower: Lowering,
    fake: Any,
    x: Activation,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    if divisor is not None:
        raise ValueError("avg_pool2d with divisor_override is not supported")
    pads = _pair(padding)
    return lower.emit(
        "AveragePool",
        x,
        kernel_shape=_pair(kernel),
        strides=_pair(stride or kernel),
        pads=[*pads, *pads],
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


@rule("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(lower: Lowering, fake: Any, x: Activation, size: Any) -> str:
    height, width = lower.builder.shape(x)[2:]
    rows, columns = _pair(size)
    if (rows, columns) == (1, 1):
        return lower.emit("ReduceMean", x, axes=[2, 3], keepdims=1)
    if height % rows or width % columns:
        raise ValueError(f"adaptive pooling from {height}x{width} to {rows}x{columns} has unequal windows")
    kernel = [height // rows, width // columns]
    return lower.emit(
        "AveragePool", x, kernel_shape=kernel, strides=kernel, pads=[0] * 4, ceil_mode=0, count_include_pad=1
    )


# --- shape --------------------------------------------------------------------------------------------------------


def _identity(lower: Lowering, fake: Any, x: Activation, *_: Any, **__: Any) -> Activation:
    return x


for _target in (
    "aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
    "aten.dropout.default", "aten.lift_fresh_copy.default", "aten._to_copy.default", "aten.to.dtype",
):  # fmt: skip
    RULES[_target] = _identity


@rule("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.unsqueeze.default",
      "aten.squeeze.dim", "aten.squeeze.dims", "aten._unsafe_view.default")  # fmt: skip
def reshape(lower: Lowering, fake: Any, x: Activation, *_: Any) -> str:
    return _reshape(lower, x, _shape(fake))


@rule("aten.permute.default")
def permute(lower: Lowering, fake: Any, x: Activation, order: Sequence[int]) -> str:
    rank = lower.rank(x)
    return lower.emit("Transpose", x, perm=[axis % rank for axis in order])


@rule("aten.transpose.int")
def transpose(lower: Lowering, fake: Any, x: Activation, a: int, b: int) -> str:
    order = list(range(lower.rank(x)))
    order[a], order[b] = order[b], order[a]
    return lower.emit("Transpose", x, perm=order)


@rule("aten.cat.default")
def cat(lower: Lowering, fake: Any, parts: Sequence[Operand], axis: int = 0) -> str:
    return lower.emit("Concat", *parts, axis=axis % len(fake.shape))


@rule("aten.slice.Tensor")
def slice_tensor(
    lower: Lowering, fake: Any, x: Activation, axis: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> str:  # fmt: skip
    shape = lower.builder.shape(x)
    axis %= len(shape)
    size = shape[axis]
    if size == BATCH:
        if start in (None, 0) and step == 1 and (end is None or end > 2**31):
            return x
        raise ValueError("slicing the batch is not supported")
    first, last, stride = slice(start, end, step).indices(size)
    if (first, last, stride) == (0, size, 1):
        return x
    return lower.emit("Slice", x, axes=[axis], starts=[first], ends=[last], steps=[stride])


def _take(lower: Lowering, x: str, axis: int, start: int, end: int) -> str:
    return lower.emit("Slice", x, axes=[axis], starts=[start], ends=[end], steps=[1])


@rule("aten.select.int")
def select(lower: Lowering, fake: Any, x: Activation, axis: int, index: int) -> str:
    shape = list(lower.builder.shape(x))
    axis %= len(shape)
    if shape[axis] == BATCH:
        raise ValueError("selecting from the batch is not supported")
    index %= shape[axis]
    return _reshape(lower, _take(lower, x, axis, index, index + 1), [*shape[:axis], *shape[axis + 1 :]])


@rule("aten.unbind.int")
def unbind(lower: Lowering, fake: Any, x: Activation, axis: int = 0) -> tuple[str, ...]:
    return tuple(select(lower, None, x, axis, i) for i in range(lower.builder.shape(x)[axis]))


@rule("aten.split.Tensor", "aten.chunk.default", "aten.split_with_sizes.default")
def split(lower: Lowering, fake: Sequence[Any], x: Activation, size: Any, axis: int = 0) -> tuple[str, ...]:
    axis %= lower.rank(x)
    parts, start = [], 0
    for piece in fake:
        end = start + int(piece.shape[axis])
        parts.append(_take(lower, x, axis, start, end))
        start = end
    return tuple(parts)


@rule("aten.pad.default", "aten.constant_pad_nd.default")
def pad(
    lower: Lowering, fake: Any, x: Activation, sizes: Sequence[int], mode: Any = "constant", value: Any = None
) -> str:
    number = mode if isinstance(mode, int | float) else value
    if isinstance(mode, str) and mode != "constant":
        raise ValueError(f"padding mode {mode!r} is not supported")
    if all(size == 0 for size in sizes):
        return x
    rank = lower.rank(x)
    starts, ends = [0] * rank, [0] * rank
    for i in range(len(sizes) // 2):
        starts[rank - 1 - i], ends[rank - 1 - i] = sizes[2 * i], sizes[2 * i + 1]
    return lower.emit("Pad", x, pads=[*starts, *ends], value=float(number or 0.0))


@rule("aten.expand.default")
def expand(lower: Lowering, fake: Any, x: Operand, sizes: Sequence[int], **_: Any) -> str:
    shape = _shape(fake)
    if isinstance(x, str) and list(lower.builder.shape(x)) == shape:
        return x
    if isinstance(x, Tensor) and shape[0] == BATCH and x.shape[0] == 1:
        # A learned token, once per image: add it to zeros that carry the batch.
        zero = lower.emit("Mul", _one_per_sample(lower, len(shape)), 0.0)
        return lower.emit("Add", zero, x)
    ones = torch.ones([1 if size == BATCH else size for size in shape])
    return lower.emit("Mul", x, ones)


def _one_per_sample(lower: Lowering, rank: int) -> str:
    image = lower.builder.inputs[0]
    axes = list(range(1, lower.rank(image)))
    corner = lower.emit("Slice", image, axes=axes, starts=[0] * len(axes), ends=[1] * len(axes), steps=[1] * len(axes))
    return lower.emit("Reshape", corner, shape=[0] + [1] * (rank - 1))
