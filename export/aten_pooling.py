"""Lowering rules: max-pooling and average-pooling."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgetta.export.lowering import Activation, Lowering, pair, rule


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
    if pair(dilation) != [1, 1]:
        raise ValueError("dilated max-pooling is not supported")
    pads = pair(padding)
    return lower.emit(
        "MaxPool",
        x,
        kernel_shape=pair(kernel),
        strides=pair(stride or kernel),
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
    """A plain average over windows of zero-padded images; windows that torch divides by less are then scaled up."""
    size, result = lower.builder.shape(x)[2:], [int(n) for n in fake.shape[2:]]
    kernels, strides, pads = pair(kernel), pair(stride or kernel), pair(padding)
    attributes = {"kernel_shape": kernels, "strides": strides, "ceil_mode": 0, "count_include_pad": 1}
    read = [(result[i] - 1) * strides[i] + kernels[i] for i in range(2)]
    after = [max(0, read[i] - size[i] - pads[i]) for i in range(2)]
    if all(after[i] <= pads[i] for i in range(2)):
        y = lower.emit("AveragePool", x, pads=[*pads, *pads], **attributes)
    else:  # ceil_mode reads beyond the padding
        y = lower.emit("Pad", x, pads=[0, 0, *pads, 0, 0, *after], value=0.0)
        y = lower.emit("AveragePool", y, pads=[0] * 4, **attributes)
    inside = [pads if count_include_pad else [0, 0], size]
    counts = [_counts(size[i], result[i], kernels[i], strides[i], pads[i], inside[0][i]) for i in range(2)]
    divisors = torch.tensor(counts[0])[:, None] * torch.tensor(counts[1]) if divisor is None else torch.tensor(divisor)
    if bool((divisors == math.prod(kernels)).all()):
        return y
    return lower.emit("Mul", y, (math.prod(kernels) / divisors.double()).expand(1, 1, *result).contiguous())


def _counts(size: int, result: int, kernel: int, stride: int, pad: int, counted: int) -> list[int]:
    """Of each window along one axis, the elements that torch divides by: those inside the image and `counted` pads."""
    starts = [i * stride - pad for i in range(result)]
    return [min(start + kernel, size + counted) - max(start, -counted) for start in starts]


@rule("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(lower: Lowering, fake: Any, x: Activation, size: Any) -> str:
    """Windows of equal size as a pool; of unequal sizes, one product per axis with a matrix of shares."""
    height, width = lower.builder.shape(x)[2:]
    rows, columns = (int(n) for n in fake.shape[2:])
    if (rows, columns) == (1, 1):
        return lower.emit("ReduceMean", x, axes=[2, 3], keepdims=1)
    if height % rows == 0 and width % columns == 0:
        kernel = [height // rows, width // columns]
        return lower.emit(
            "AveragePool", x, kernel_shape=kernel, strides=kernel, pads=[0] * 4, ceil_mode=0, count_include_pad=1
        )
    return lower.emit(
        "MatMul", _shares(height, rows), lower.emit("MatMul", x, _shares(width, columns).t().contiguous())
    )


def _shares(size: int, result: int) -> torch.Tensor:
    """(result, size): each row holds the mean over one window, whose borders are rounded outwards."""
    matrix = torch.zeros(result, size, dtype=torch.float64)
    for i in range(result):
        start, end = i * size // result, -(-(i + 1) * size // result)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
