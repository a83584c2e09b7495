"""What each operator of a `Graph` means, in torch. Names and attributes follow ONNX opset 17.

`Silu`, `Gelu`, `ChannelMean`, `ChannelVariance`, `ConvWeightGradient` and `FakeQuantize` are not ONNX operators of
that opset: here they are one step, and `edgetta.export.onnx_writer` spells them out. `Detach` passes a value and stops
its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Tensor:
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    return F.conv2d(x, weight, bias, tuple(strides), (top, left), tuple(dilations), group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    output_padding: Sequence[int],
) -> Tensor:
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return F.conv_transpose2d(
            x, weight, bias, tuple(strides), (top, left), tuple(output_padding), group, tuple(dilations)
        )
    # Asymmetric padding crops the full result.
    y = F.conv_transpose2d(x, weight, bias, tuple(strides), 0, tuple(output_padding), group, tuple(dilations))
    return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right].contiguous()


def conv_weight_gradient(
    x: Tensor,
    gradient: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Tensor:
    """Gradient of a convolution's weight (O, I / group, k, k), for its input x and the gradient of its output."""
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    weight = x.new_empty((gradient.shape[1], x.shape[1] // group, *kernel_shape))
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        list(strides),
        [top, left],
        list(dilations),
        False,
        [0, 0],
        group,
        [False, True, False],
    )[1]
    return found


def batch_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def channel_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C) -> (C,)"""
    return _per_channel(x)


def channel_variance(x: Tensor, mean: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C), (C,) -> (C,): the biased variance that BatchNorm normalises with, in two passes.

    E[x^2] - mean^2 would cancel where a channel is nearly constant; torch.var is right, but ten times slower on CPU.
    """
    centred = x - mean.reshape(-1, *([1] * (x.dim() - 2)))
    return _per_channel(centred.mul_(centred))


def _per_channel(x: Tensor) -> Tensor:
    """Mean over all axes but the channel, the contiguous ones first."""
    return (x.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else x).mean(0)


def reshape(x: Tensor, *, shape: Sequence[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def slice_(
    x: Tensor, *, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]
) -> Tensor:
    index = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def pad(x: Tensor, *, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """`pads` holds the starts of all axes, then the ends of all axes."""
    rank = x.dim()
    reverse = [size for axis in reversed(range(rank)) for size in (pads[axis], pads[axis + rank])]
    return F.pad(x, reverse, value=value)


def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int], pads: Sequence[int], ceil_mode: int = 0
) -> Tensor:
    return F.max_pool2d(x, tuple(kernel_shape), tuple(strides), tuple(pads[:2]), ceil_mode=bool(ceil_mode))


def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    ceil_mode: int = 0,
    count_include_pad: int = 1,
) -> Tensor:
    return F.avg_pool2d(
        x, tuple(kernel_shape), tuple(strides), tuple(pads[:2]), bool(ceil_mode), bool(count_include_pad)
    )


def clip(x: Tensor, *, min: float, max: float, inclusive: int = 0) -> Tensor:
    """`inclusive` speaks of the gradient: whether it passes where x is exactly a bound."""
    return torch.clamp(x, min, max)


def reduce_mean(x: Tensor, *, axes: Sequence[int], keepdims: int) -> Tensor:
    return x.mean(tuple(axes), keepdim=bool(keepdims))


def reduce_sum(x: Tensor, *, axes: Sequence[int], keepdims: int) -> Tensor:
    return x.sum(tuple(axes), keepdim=bool(keepdims))


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, 0 elsewhere: the gradient of ReLU. ONNX: Mul(x, Cast(mask)).

    Measured on CPU: multiplying by the mask's bytes takes half the time that multiplying by booleans takes, and an
    eighth of `where`.
    """
    return x * mask.view(torch.uint8)


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """x rounded to whole multiples of `scale` (), from -128 to 127 of them, halves to even."""
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def dequantize_linear(codes: Tensor, scale: Tensor, *, axis: int) -> Tensor:
    """int8 codes times one scale per index of `axis`."""
    column = [1] * codes.dim()
    column[axis] = -1
    return codes.to(scale.dtype) * scale.reshape(column)


def concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, axis)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "ConvWeightGradient": conv_weight_gradient,
    "BatchNormalization": batch_normalization,
    "ChannelMean": channel_mean,
    "ChannelVariance": channel_variance,
    "MatMul": torch.matmul,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Identity": torch.clone,
    "Detach": lambda x: x,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Clip": clip,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Silu": F.silu,
    "Gelu": F.gelu,
    "HardSwish": F.hardswish,
    "HardSigmoid": lambda x, *, alpha, beta: torch.clamp(alpha * x + beta, 0.0, 1.0),
    "Softmax": lambda x, *, axis: torch.softmax(x, axis),
    "Greater": torch.gt,
    "Less": torch.lt,
    "Equal": torch.eq,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Not": torch.logical_not,
    "Where": where,
    "Masked": masked,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Reshape": reshape,
    "Transpose": lambda x, *, perm: x.permute(tuple(perm)),
    "Concat": concat,
    "Slice": slice_,
    "Pad": pad,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "FakeQuantize": fake_quantize,
    "DequantizeLinear": dequantize_linear,
}
