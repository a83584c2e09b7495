"""Lowering rules: the layers of a network but for its pools, from torch to the vocabulary of `Graph`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgetta.export.lowering import RULES, Activation, Lowering, Operand, Rule, pair, rule
from edgetta.segments.graph import LARGEST


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
    pads = pair(padding)
    return _conv(lower, x, weight, bias, pair(stride), [*pads, *pads], pair(dilation), groups)


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
    dilations = pair(dilation)
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    starts = [size // 2 for size in total]
    ends = [size - start for size, start in zip(total, starts, strict=True)]
    return _conv(lower, x, weight, bias, pair(stride), [*starts, *ends], dilations, groups)


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
    y = lower.emit("MatMul", x, lower.derived(weight.t().contiguous(), weight, "transposed"))
    return lower.emit("Add", y, bias) if bias is not None else y


@rule("aten.addmm.default")
def addmm(lower: Lowering, fake: Any, bias: Operand, a: Operand, b: Operand) -> str:
    return lower.emit("Add", lower.emit("MatMul", a, b), bias)


@rule("aten.matmul.default", "aten.mm.default", "aten.bmm.default")
def matmul(lower: Lowering, fake: Any, a: Operand, b: Operand) -> str:
    return lower.emit("MatMul", a, b)


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


@rule("aten.batch_norm.default")
def composite_batch_norm(
    lower: Lowering,
    fake: Any,
    x: Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> str:
    if training or mean is None or var is None:
        raise ValueError("a BatchNorm without running statistics, or in training mode, is not supported")
    return batch_norm(lower, fake, x, weight, bias, mean, var, momentum, eps)[0]


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
    columns = [None if t is None else lower.derived(t.reshape(column), t, "column") for t in (weight, bias)]
    return _affine(lower, y, *columns)


def _standardise(lower: Lowering, x: str, axes: list[int], eps: float) -> str:
    centred = lower.emit("Sub", x, lower.emit("ReduceMean", x, axes=axes, keepdims=1))
    variance = lower.emit("ReduceMean", lower.emit("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = lower.emit("Sqrt", lower.emit("Add", variance, float(eps)))
    return lower.emit("Mul", centred, lower.emit("Reciprocal", deviation))


def _affine(lower: Lowering, x: str, weight: Tensor | None, bias: Tensor | None) -> str:
    y = x if weight is None else lower.emit("Mul", x, weight)
    return y if bias is None else lower.emit("Add", y, bias)


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
RULES["aten.log.default"] = _unary("Log")
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


@rule("aten.hardtanh.default")
def hardtanh(lower: Lowering, fake: Any, x: Activation, low: float = -1.0, high: float = 1.0) -> str:
    return lower.emit("Clip", x, min=float(low), max=float(high))


@rule("aten.clamp.default")
def clamp(lower: Lowering, fake: Any, x: Activation, low: float | None = None, high: float | None = None) -> str:
    bounds = -LARGEST if low is None else float(low), LARGEST if high is None else float(high)
    return lower.emit("Clip", x, min=bounds[0], max=bounds[1], inclusive=1)


@rule("aten.clamp_min.default")
def clamp_min(lower: Lowering, fake: Any, x: Activation, low: float) -> str:
    return clamp(lower, fake, x, low)


@rule("aten.clamp_max.default")
def clamp_max(lower: Lowering, fake: Any, x: Activation, high: float) -> str:
    return clamp(lower, fake, x, None, high)


@rule("aten.leaky_relu.default")
def leaky_relu(lower: Lowering, fake: Any, x: Activation, slope: float = 0.01) -> str:
    """slope * x + (1 - slope) * relu(x): one mask, and the slope at exactly 0, as autograd has it."""
    return lower.emit("Add", lower.emit("Mul", x, slope), lower.emit("Mul", lower.emit("Relu", x), 1 - slope))


@rule("aten.prelu.default")
def prelu(lower: Lowering, fake: Any, x: Activation, slopes: Tensor) -> str:
    if slopes.numel() > 1:
        column = (1, -1, *([1] * (lower.rank(x) - 2)))
        slopes = lower.derived(slopes.reshape(column), slopes, "column")
    line, bend = lower.emit("Mul", x, slopes), lower.derived(1 - slopes.double(), slopes, "bend")
    return lower.emit("Add", line, lower.emit("Mul", lower.emit("Relu", x), bend))


@rule("aten.elu.default")
def elu(lower: Lowering, fake: Any, x: Activation, alpha: float = 1, scale: float = 1, inner: float = 1) -> str:
    """scale * (relu(x) + alpha * (exp(inner * min(x, 0)) - 1)), where min(x, 0) = x - relu(x) has slope 1 at 0."""
    positive = lower.emit("Relu", x)
    below = lower.emit("Exp", lower.emit("Mul", lower.emit("Sub", x, positive), float(inner)))
    curve = lower.emit("Mul", lower.emit("Sub", below, 1.0), float(alpha))
    return lower.emit("Mul", lower.emit("Add", positive, curve), float(scale))


@rule("aten.softplus.default")
def softplus(lower: Lowering, fake: Any, x: Activation, beta: float = 1, threshold: float = 20) -> str:
    """(r + log(1 + exp(t - 2 r))) / beta with t = beta x and r = relu(t): no overflow, and the slope 1/2 at 0.

    From the threshold on torch takes x itself, which is the same to nine digits.
    """
    scaled = lower.emit("Mul", x, float(beta))
    positive = lower.emit("Relu", scaled)
    small = lower.emit("Exp", lower.emit("Sub", scaled, lower.emit("Mul", positive, 2.0)))
    total = lower.emit("Add", positive, lower.emit("Log", lower.emit("Add", small, 1.0)))
    return lower.emit("Mul", total, 1.0 / float(beta))


@rule("aten.mish.default")
def mish(lower: Lowering, fake: Any, x: Activation) -> str:
    return lower.emit("Mul", x, lower.emit("Tanh", softplus(lower, fake, x)))


@rule("aten._softmax.default", "aten.softmax.int")
def softmax(lower: Lowering, fake: Any, x: Activation, axis: int, *_: Any) -> str:
    return lower.emit("Softmax", x, axis=axis % lower.rank(x))


@rule("aten._log_softmax.default", "aten.log_softmax.int")
def log_softmax(lower: Lowering, fake: Any, x: Activation, axis: int, *_: Any) -> str:
    """At the end of a network it is left out (`trace`), which is where it stands."""
    return lower.emit("Log", softmax(lower, fake, x, axis))


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
    enable_gqa: bool = False,
) -> str:
    if causal or dropout or enable_gqa:
        raise ValueError("causal attention, dropout inside attention and grouped queries are not supported")
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -LARGEST)
    shape = lower.builder.shape(query)
    rank = len(shape)
    factor = scale if scale is not None else 1.0 / math.sqrt(shape[-1])
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    scores = lower.emit("MatMul", lower.emit("Mul", query, factor), lower.emit("Transpose", key, perm=swapped))
    if mask is not None:
        scores = lower.emit("Add", scores, mask)
    return lower.emit("MatMul", lower.emit("Softmax", scores, axis=rank - 1), value)
