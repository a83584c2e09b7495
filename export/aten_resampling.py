"""Lowering rules: maps of another size by interpolation, windows that overlap, maps that are rolled or repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.export.aten_shapes import expand
from edgetta.export.lowering import Activation, Lowering, Operand, rule


def _resized(lower: Lowering, fake: Any, x: str, mode: str, scales: Sequence[float] | None, **keywords: Any) -> str:
    """Interpolation is linear and separable: one product per axis with the matrix that torch makes of unit vectors."""
    (height, width), (rows, columns) = lower.builder.shape(x)[2:], (int(n) for n in fake.shape[2:])

    def matrix(size: int, result: int, scale: float | None) -> Tensor:
        unit = torch.eye(size, dtype=torch.float64)[None, None]
        wanted: dict[str, Any] = {"size": (result, size)} if scale is None else {"scale_factor": (scale, 1.0)}
        return F.interpolate(unit, mode=mode, **wanted, **keywords)[0, 0]

    down, across = (None, None) if scales is None else scales
    if columns != width:
        x = lower.emit("MatMul", x, matrix(width, columns, across).t().contiguous())
    return lower.emit("MatMul", matrix(height, rows, down), x) if rows != height else x


@rule("aten.upsample_nearest2d.vec")
def upsample_nearest(
    lower: Lowering, fake: Any, x: Activation, size: Any = None, scales: Sequence[float] | None = None
) -> str:
    return _resized(lower, fake, x, "nearest", scales)


@rule("aten.upsample_bilinear2d.vec")
def upsample_bilinear(
    lower: Lowering, fake: Any, x: Activation, size: Any, aligned: bool, scales: Sequence[float] | None = None
) -> str:
    return _resized(lower, fake, x, "bilinear", scales, align_corners=aligned)


@rule("aten.upsample_bicubic2d.vec")
def upsample_bicubic(
    lower: Lowering, fake: Any, x: Activation, size: Any, aligned: bool, scales: Sequence[float] | None = None
) -> str:
    return _resized(lower, fake, x, "bicubic", scales, align_corners=aligned)


@rule("aten.unfold.default")
def unfold(lower: Lowering, fake: Any, x: Activation, axis: int, size: int, step: int) -> str:
    """(..., n, ...) -> (..., windows, ..., size): each window a slice whose elements become the last axis."""
    shape = list(lower.builder.shape(x))
    axis %= len(shape)
    others = [i for i in range(len(shape)) if i != axis]
    windows = []
    for start in range(0, shape[axis] - size + 1, step):
        window = lower.emit("Slice", x, axes=[axis], starts=[start], ends=[start + size], steps=[1])
        last = lower.emit("Transpose", window, perm=[*others, axis]) if axis != len(shape) - 1 else window
        sizes = [shape[i] for i in others]
        windows.append(lower.reshape(last, [*sizes[:axis], 1, *sizes[axis:], size]))
    return lower.emit("Concat", *windows, axis=axis) if len(windows) > 1 else windows[0]


@rule("aten.roll.default")
def roll(lower: Lowering, fake: Any, x: Activation, shifts: Sequence[int], axes: Sequence[int] = ()) -> str:
    if not axes:
        raise ValueError("rolling over all elements at once is not supported; name the axes")
    shape = lower.builder.shape(x)
    for axis, shift in zip((axis % len(shape) for axis in axes), shifts, strict=True):
        if shape[axis] < 0:
            raise ValueError("rolling the batch is not supported")
        start = -shift % shape[axis]
        if start:
            parts = ((start, shape[axis]), (0, start))
            sliced = [lower.emit("Slice", x, axes=[axis], starts=[a], ends=[b], steps=[1]) for a, b in parts]
            x = lower.emit("Concat", *sliced, axis=axis)
    return x


@rule("aten.repeat.default")
def repeat(lower: Lowering, fake: Any, x: Operand, repeats: Sequence[Any]) -> Any:
    if isinstance(x, Tensor):
        # Constants without the batch are repeated by torch: here the first axis becomes the batch.
        whole = x.repeat([1, *(int(n) for n in repeats[1:])])
        return expand(lower, fake, lower.derived(whole, x, "repeated"), ())
    assert isinstance(x, str)
    shape = lower.builder.shape(x)
    if len(repeats) > len(shape):
        x = lower.reshape(x, [*[1] * (len(repeats) - len(shape)), *shape])
    for axis, count in enumerate(repeats):
        if not isinstance(count, int) or (count > 1 and lower.builder.shape(x)[axis] < 0):
            raise ValueError("repeating the batch is not supported")
        if count > 1:
            x = lower.emit("Concat", *[x] * count, axis=axis)
    return x
