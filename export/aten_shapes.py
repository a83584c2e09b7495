"""Lowering rules: arithmetic, reductions, and what moves, selects or joins elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgetta.export.lowering import RULES, Activation, Lowering, Operand, Rule, rule, shape_of
from edgetta.segments.graph import BATCH, LARGEST


def _binary(op: str) -> Rule:
    def lowered(lower: Lowering, fake: Any, a: Operand, b: Operand, *, alpha: float = 1) -> str:
        other: Operand = lower.emit("Mul", b, alpha) if alpha != 1 else b
        return lower.emit(op, a, other)

    return lowered


for _name, _op in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items():
    RULES[f"aten.{_name}.Tensor"] = RULES[f"aten.{_name}.Scalar"] = _binary(_op)


@rule("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(lower: Lowering, fake: Any, a: Operand, b: Operand, alpha: float = 1) -> str:
    return lower.emit("Sub", b, lower.emit("Mul", a, alpha) if alpha != 1 else a)


@rule("aten.pow.Tensor_Scalar")
def power(lower: Lowering, fake: Any, x: Activation, exponent: float) -> str:
    if exponent == 0.5:
        return lower.emit("Sqrt", x)
    if exponent not in (2, 3):
        raise ValueError(f"the power {exponent} is not supported")
    square = lower.emit("Mul", x, x)
    return square if exponent == 2 else lower.emit("Mul", square, x)


@rule("aten.rsqrt.default")
def rsqrt(lower: Lowering, fake: Any, x: Activation) -> str:
    return lower.emit("Reciprocal", lower.emit("Sqrt", x))


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


def _moments(*wanted: str) -> Rule:
    """Of "var", "std" and "mean", those that an operator returns, over the same axes."""

    def lowered(lower: Lowering, fake: Any, x: Activation, axes: Any = None, unbiased: bool = True,
                keepdim: bool = False, *, correction: float | None = None) -> Any:  # fmt: skip
        chosen = _axes(lower, x, axes)
        less = float(unbiased if correction is None else correction)
        count = math.prod(lower.builder.shape(x)[axis] for axis in chosen)
        average = lower.emit("ReduceMean", x, axes=chosen, keepdims=1)
        centred = lower.emit("Sub", x, average)
        total = lower.emit("ReduceSum", lower.emit("Mul", centred, centred), axes=chosen, keepdims=int(keepdim))
        found = {"var": lower.emit("Mul", total, 1.0 / (count - less))}
        if "std" in wanted:
            found["std"] = lower.emit("Sqrt", found["var"])
        if "mean" in wanted:
            found["mean"] = lower.reshape(average, lower.builder.shape(total))
        return tuple(found[name] for name in wanted) if len(wanted) > 1 else found[wanted[0]]

    return lowered


for _wanted in (("var",), ("std",), ("var", "mean"), ("std", "mean")):
    for _overload in ("correction", "dim"):
        RULES[f"aten.{'_'.join(_wanted)}.{_overload}"] = _moments(*_wanted)


@rule("aten.linalg_vector_norm.default")
def vector_norm(
    lower: Lowering, fake: Any, x: Activation, order: float = 2, axes: Any = None, keepdim: bool = False, **_: Any
) -> str:
    """The root's argument stays above 0, so that the gradient of a vector of zeros is 0, as autograd's."""
    if order != 2:
        raise ValueError(f"the norm of order {order} is not supported")
    squares = lower.emit("ReduceSum", lower.emit("Mul", x, x), axes=_axes(lower, x, axes), keepdims=int(keepdim))
    return lower.emit("Sqrt", lower.emit("Clip", squares, min=1e-30, max=LARGEST))


def _axes(lower: Lowering, x: str, axes: Sequence[int] | None) -> list[int]:
    rank = lower.rank(x)
    chosen = sorted(axis % rank for axis in (axes if axes else range(rank)))
    if any(lower.builder.shape(x)[axis] < 0 for axis in chosen):
        raise ValueError("a mean or sum over the batch is not supported")
    return chosen


@rule(
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten._to_copy.default",
    "aten.to.dtype",
)
def identity(lower: Lowering, fake: Any, x: Activation, *_: Any, **__: Any) -> Activation:
    if not fake.dtype.is_floating_point:
        raise ValueError(f"a conversion to {fake.dtype} is not supported")
    return x


@rule("aten.detach.default")
def detach(lower: Lowering, fake: Any, x: Activation) -> str:
    return lower.emit("Detach", x)


@rule("aten.dropout.default")
def dropout(lower: Lowering, fake: Any, x: Activation, share: float, training: bool) -> Activation:
    if training:
        raise ValueError("dropout in training mode is not supported")
    return x


@rule("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.unsqueeze.default",
      "aten.squeeze.dim", "aten.squeeze.dims", "aten._unsafe_view.default")  # fmt: skip
def reshape(lower: Lowering, fake: Any, x: Activation, *_: Any) -> str:
    return lower.reshape(x, shape_of(fake))


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


@rule("aten.stack.default")
def stack(lower: Lowering, fake: Any, parts: Sequence[Activation], axis: int = 0) -> str:
    shape = shape_of(fake)
    axis %= len(shape)
    apart = [*shape[:axis], 1, *shape[axis + 1 :]]
    return lower.emit("Concat", *(lower.reshape(part, apart) for part in parts), axis=axis)


@rule("aten.slice.Tensor")
def slice_tensor(
    lower: Lowering, fake: Any, x: Activation, axis: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> str:  # fmt: skip
    shape = lower.builder.shape(x)
    axis %= len(shape)
    size = shape[axis]
    if size < 0:
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
    if shape[axis] < 0:
        raise ValueError("selecting from the batch is not supported")
    index %= shape[axis]
    return lower.reshape(_take(lower, x, axis, index, index + 1), [*shape[:axis], *shape[axis + 1 :]])


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
    rank = lower.rank(x)
    starts, ends = [0] * rank, [0] * rank
    for i in range(len(sizes) // 2):
        starts[rank - 1 - i], ends[rank - 1 - i] = sizes[2 * i], sizes[2 * i + 1]
    for axis in range(rank):
        if min(starts[axis], ends[axis]) < 0:  # negative padding crops
            size = lower.builder.shape(x)[axis]
            x = _take(lower, x, axis, max(0, -starts[axis]), size + min(0, ends[axis]))
    pads = [max(0, size) for size in (*starts, *ends)]
    return lower.emit("Pad", x, pads=pads, value=float(number or 0.0)) if any(pads) else x


@rule("aten.expand.default")
def expand(lower: Lowering, fake: Any, x: Operand, sizes: Sequence[int], **_: Any) -> str:
    shape = shape_of(fake)
    if isinstance(x, str) and list(lower.builder.shape(x)) == shape:
        return x
    if isinstance(x, Tensor) and shape[0] == BATCH and x.shape[0] == 1:
        # A learned token, once per image: add it to zeros that carry the batch.
        zero = lower.emit("Mul", _one_per_sample(lower, len(shape)), 0.0)
        return lower.emit("Add", zero, x)
    ones = torch.ones([1 if size < 0 else size for size in shape])
    return lower.emit("Mul", x, ones)


def _one_per_sample(lower: Lowering, rank: int) -> str:
    """One number of each image, of the value that was made last: the image itself would be needed up to here, and no
    place before could be cut."""
    values = lower.builder.values
    made = (node.output for node in reversed(lower.builder.nodes))
    latest = next((n for n in made if values[n].shape[0] == BATCH and values[n].dtype == "float"), "x")
    axes = list(range(1, lower.rank(latest)))
    ones = [1] * len(axes)
    corner = lower.emit("Slice", latest, axes=axes, starts=[0] * len(axes), ends=ones, steps=ones) if axes else latest
    return lower.emit("Detach", lower.emit("Reshape", corner, shape=[0] + [1] * (rank - 1)))
