"""Shape and type of each operator's result, without running it: how graphs are built, and checked when they are read.

`BATCH` may stand in one place of a shape; k times it, where the batch is merged with a dimension behind it (windows,
heads), is k images' share of that place. (torch's meta device would do the same, but takes as long to load as half
of torch, which a device has to wait for.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BATCH = -1

Shape = tuple[int, ...]
Kind = tuple[Shape, str]
"""Shape and dtype ("float", "bool", or "int8" for quantised weights) of a value."""


def with_batch(shape: Sequence[int], batch: int) -> Shape:
    """The shape for so many images."""
    return tuple(-size * batch if size < 0 else size for size in shape)


def per_image(shape: Sequence[int]) -> Shape:
    """The shape for one image."""
    return with_batch(shape, 1)


def infer(op: str, arguments: Sequence[Kind | None], attributes: Mapping[str, Any]) -> Kind:
    """Shape and dtype of an operator's result; an absent optional argument is None.

    Raises `ValueError` for an unknown operator, arguments or attributes that do not fit, and where the batch would be
    merged with another dimension.
    """
    if op not in _RULES:
        raise ValueError(f"there is no operator {op!r}")
    takes, gives, rule = _RULES[op]
    given = [kind[1] for kind in arguments if kind is not None]
    if given != (list(takes) if len(takes) > 1 else list(takes) * len(given)):
        raise ValueError(f"{op} takes {' and '.join(takes)} values, not {' and '.join(given)}")
    shapes = [None if kind is None else kind[0] for kind in arguments]
    try:
        _need(None not in shapes[:2], "an argument is missing")
        _need(all(map(_is_number, attributes.values())), "attributes are numbers or lists of integers")
        shape = rule(*shapes, **attributes)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{op} cannot take {shapes} with {dict(attributes)}: {error}") from error
    if any(not isinstance(size, int) for size in shape) or sum(size < 0 for size in shape) > 1:
        raise ValueError(f"{op} makes no shape from {shapes} with {dict(attributes)}")
    return shape, gives


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, int) for item in value)
    return isinstance(value, int | float)


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _broadcast(*shapes: Shape) -> Shape:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        _need(len(wide) <= 1, f"shapes {shapes} do not broadcast")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _both(a: Shape, b: Shape) -> Shape:
    return _broadcast(a, b)


def _same(x: Shape) -> Shape:
    return x


def _masked(x: Shape, mask: Shape) -> Shape:
    _need(_broadcast(x, mask) == mask, f"a mask of shape {mask} does not fit {x}")
    return mask


def _window(size: int, kernel: int, stride: int, pads: int, dilation: int = 1) -> int:
    _need(kernel > 0 and stride > 0 and dilation > 0, "kernel, stride and dilation must be positive")
    free = size + pads - dilation * (kernel - 1) - 1
    _need(free >= 0, f"a kernel of {kernel} does not fit {size}")
    return free // stride + 1


def _images(x: Shape, *pairs: Sequence[int]) -> None:
    _need(len(x) == 4 and min(x[1:]) >= 0, f"{x} are no images")
    _need(all(len(pair) == 2 for pair in pairs), "height and width need one number each")


def _conv(
    x: Shape,
    weight: Shape,
    bias: Shape | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Shape:
    _images(x, strides, dilations, pads[::2])
    _need(len(weight) == 4 and group > 0 and x[1] == weight[1] * group and weight[0] % group == 0, "channels differ")
    _need(bias is None or bias == weight[:1], f"a bias of shape {bias} does not fit")
    sizes = (_window(x[2 + i], weight[2 + i], strides[i], pads[i] + pads[i + 2], dilations[i]) for i in range(2))
    return (x[0], weight[0], *sizes)


def _conv_transpose(
    x: Shape,
    weight: Shape,
    bias: Shape | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    output_padding: Sequence[int],
) -> Shape:
    _images(x, strides, dilations, pads[::2], output_padding)
    _need(len(weight) == 4 and group > 0 and x[1] == weight[0] and weight[0] % group == 0, "channels differ")
    _need(bias is None or bias == (weight[1] * group,), f"a bias of shape {bias} does not fit")
    _need(
        all(0 <= extra < max(s, d) for extra, s, d in zip(output_padding, strides, dilations, strict=True)), "padding"
    )
    sizes = [
        (x[2 + i] - 1) * strides[i]
        + dilations[i] * (weight[2 + i] - 1)
        + 1
        + output_padding[i]
        - pads[i]
        - pads[i + 2]
        for i in range(2)
    ]
    _need(min(sizes) > 0, "nothing is left")
    return (x[0], weight[1] * group, *sizes)


def _conv_weight_gradient(
    x: Shape,
    gradient: Shape,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Shape:
    weight = (gradient[1], x[1] // group, *kernel_shape)
    made = _conv(x, weight, strides=strides, pads=pads, dilations=dilations, group=group)
    _need(made == gradient, f"a gradient of shape {gradient} does not fit {made}")
    return weight


def _batch_normalization(x: Shape, *parameters: Shape, epsilon: float) -> Shape:
    _need(len(parameters) == 4 and set(parameters) == {x[1:2]}, "parameters do not fit the channels")
    return x


def _channel_mean(x: Shape) -> Shape:
    _need(len(x) >= 2 and min(x[1:]) >= 0, f"{x} has no channels")
    return x[1:2]


def _channel_variance(x: Shape, mean: Shape) -> Shape:
    _need(mean == _channel_mean(x), f"a mean of shape {mean} does not fit")
    return mean


def _dequantize(codes: Shape, scale: Shape, *, axis: int) -> Shape:
    _need(0 <= axis < len(codes) and scale == (codes[axis],), f"scales of shape {scale} do not fit {codes}")
    return codes


def _fake_quantize(x: Shape, scale: Shape) -> Shape:
    _need(scale == (), f"one scale is needed, not {scale}")
    return x


def _matmul(a: Shape, b: Shape) -> Shape:
    _need(len(a) >= 2 and len(b) >= 2 and a[-1] == b[-2] >= 0, f"{a} and {b} cannot be multiplied")
    return (*_broadcast(a[:-2], b[:-2]), a[-2], b[-1]) if len(a) + len(b) > 4 else (a[-2], b[-1])


def _reduce(x: Shape, *, axes: Sequence[int], keepdims: int) -> Shape:
    _need(all(0 <= axis < len(x) for axis in axes), f"{x} has no axes {axes}")
    return tuple(1 if i in axes else size for i, size in enumerate(x) if keepdims or i not in axes)


def _axis(x: Shape, *, axis: int) -> Shape:
    _need(0 <= axis < len(x), f"{x} has no axis {axis}")
    return x


def _reshape(x: Shape, *, shape: Sequence[int]) -> Shape:
    """0 copies a size, -1 is what is left, as in ONNX."""
    result = [x[i] if size == 0 else size for i, size in enumerate(shape)]
    copied = sum(1 for i, size in enumerate(shape) if size == 0 and x[i] < 0)
    free = [i for i, size in enumerate(shape) if size == -1]
    _need(len(free) <= 1 and min(shape, default=1) >= -1 and copied <= 1, f"{list(shape)} is no shape")
    known = math.prod(per_image([size for i, size in enumerate(result) if i not in free]))
    count = math.prod(per_image(x))
    batch = next((i for i, size in enumerate(x) if size < 0), None)
    if batch is not None and not copied:
        # Images stay whole, one after another: what lies before the batch stays before it.
        whole = bool(free) and known > 0 and count % known == 0
        _need(
            whole and math.prod(x[:batch]) == math.prod(result[: free[0]]),
            "it merges the batch with another dimension",
        )
        result[free[0]] = -(count // known)
    elif free:
        _need(known > 0 and count % known == 0, f"{x} cannot become {list(shape)}")
        result[free[0]] = count // known
    else:
        _need(count == known, f"{x} cannot become {list(shape)}")
    return tuple(result)


def _transpose(x: Shape, *, perm: Sequence[int]) -> Shape:
    _need(sorted(perm) == list(range(len(x))), f"{list(perm)} does not permute {x}")
    return tuple(x[i] for i in perm)


def _concat(*shapes: Shape, axis: int) -> Shape:
    _axis(shapes[0], axis=axis)
    rest = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
    _need(len(rest) == 1 and all(shape[axis] >= 0 for shape in shapes), f"{shapes} cannot be joined")
    return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])


def _slice(
    x: Shape, *, axes: Sequence[int], starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]
) -> Shape:
    result = list(x)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        _need(0 <= axis < len(x) and x[axis] >= 0 and step > 0, f"{x} cannot be sliced along {axis} by {step}")
        result[axis] = len(range(*slice(start, end, step).indices(x[axis])))
    return tuple(result)


def _pad(x: Shape, *, pads: Sequence[int], value: float) -> Shape:
    _need(len(pads) == 2 * len(x), f"{list(pads)} does not fit {x}")
    added = [pads[i] + pads[i + len(x)] for i in range(len(x))]
    _need(min(pads, default=0) >= 0 and all(n == 0 for n, size in zip(added, x, strict=True) if size < 0), "batch")
    return tuple(size + n for size, n in zip(x, added, strict=True))


def _pool(
    x: Shape,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    ceil_mode: int,
    count_include_pad: int = 1,
) -> Shape:
    _images(x, kernel_shape, strides, pads[::2])
    _need(all(0 <= pads[i] == pads[i + 2] <= kernel_shape[i] // 2 for i in range(2)), "padding")
    sizes = []
    for i in range(2):
        size = _window(x[2 + i], kernel_shape[i], strides[i], 2 * pads[i])
        rest = x[2 + i] + 2 * pads[i] - kernel_shape[i] - (size - 1) * strides[i]
        sizes.append(size + int(ceil_mode and rest > 0 and size * strides[i] < x[2 + i] + pads[i]))
    return (*x[:2], *sizes)


_FLOAT, _BOOL = ("float",), ("bool",)
# What the arguments must be (one entry: all of them), what the result is, and its shape.
_RULES: dict[str, tuple[tuple[str, ...], str, Callable[..., Shape]]] = {
    "Conv": (_FLOAT, "float", _conv),
    "ConvTranspose": (_FLOAT, "float", _conv_transpose),
    "ConvWeightGradient": (_FLOAT, "float", _conv_weight_gradient),
    "BatchNormalization": (_FLOAT, "float", _batch_normalization),
    "ChannelMean": (_FLOAT, "float", _channel_mean),
    "ChannelVariance": (_FLOAT, "float", _channel_variance),
    "MatMul": (_FLOAT, "float", _matmul),
    **{op: (_FLOAT, "float", _both) for op in ("Add", "Sub", "Mul", "Div", "Pow")},
    **{op: (_FLOAT, "bool", _both) for op in ("Greater", "Less", "Equal")},
    **{op: (_BOOL, "bool", _both) for op in ("And", "Or")},
    **{op: (_FLOAT, "float", _same) for op in ("Relu", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh")},
    **{op: (_FLOAT, "float", _same) for op in ("Abs", "Erf", "Silu", "Gelu", "HardSwish", "Identity", "Detach")},
    "Not": (_BOOL, "bool", _same),
    "Clip": (_FLOAT, "float", lambda x, *, min, max, inclusive=0: x),
    "HardSigmoid": (_FLOAT, "float", lambda x, *, alpha, beta: x),
    "Softmax": (_FLOAT, "float", _axis),
    "Where": (("bool", "float", "float"), "float", lambda condition, a, b: _broadcast(condition, a, b)),
    "Masked": (("float", "bool"), "float", _masked),
    "ReduceMean": (_FLOAT, "float", _reduce),
    "ReduceSum": (_FLOAT, "float", _reduce),
    "Reshape": (_FLOAT, "float", _reshape),
    "Transpose": (_FLOAT, "float", _transpose),
    "Concat": (_FLOAT, "float", _concat),
    "Slice": (_FLOAT, "float", _slice),
    "DequantizeLinear": (("int8", "float"), "float", _dequantize),
    "FakeQuantize": (("float", "float"), "float", _fake_quantize),
    "Pad": (_FLOAT, "float", _pad),
    "MaxPool": (_FLOAT, "float", _pool),
    "AveragePool": (_FLOAT, "float", _pool),
}
KNOWN = frozenset(_RULES)
"""The operators that there are."""
