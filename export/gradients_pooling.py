"""Gradient rules of max-pooling and average-pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from edgetta.export.derivation import Derivation, DifferentiationError, rule
from edgetta.segments.graph import LARGEST, Node


@rule("MaxPool")
def max_pool(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Which element of the window won, in binary: ceil(log2(k * k)) masks per output element. The first one wins."""
    kernel, strides, pads = (list(node.attributes[k]) for k in ("kernel_shape", "strides", "pads"))
    size, result = d.shape(node.inputs[0])[2:], d.shape(node.output)[2:]
    offsets = list(itertools.product(range(kernel[0]), range(kernel[1])))
    planes = [d.save(plane, "mask") for plane in _winners(d, node, offsets)]
    b = d.backward
    pieces = []
    for number in range(len(offsets)):
        piece, chosen = gradient, ""
        for bit, plane in enumerate(planes):
            digit = plane if number >> bit & 1 else b.emit("Not", plane)
            chosen = b.emit("And", chosen, digit) if chosen else digit
        if chosen:
            piece = b.emit("Masked", gradient, chosen)
        pieces.append(b.emit("Reshape", piece, shape=[0, d.shape(node.output)[1], 1, *result]))
    stacked = b.emit("Concat", *pieces, axis=2)  # (N, C, k * k, H, W)
    if strides == kernel:
        spread = _tiles(d, stacked, kernel)
    else:
        channels = d.shape(node.output)[1]
        stacked = b.emit("Reshape", stacked, shape=[0, channels * len(offsets), *result])
        one_hot = torch.eye(len(offsets)).reshape(len(offsets), 1, *kernel).repeat(channels, 1, 1, 1)
        spread = _spread(d, stacked, one_hot, channels, strides)
    return [_fit(d, spread, pads[:2], size)]


def _winners(d: Derivation, node: Node, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """Masks in the shape of the output: bit b of the number of the first window element that equals the maximum."""
    x, y, f = node.inputs[0], node.output, d.forward
    kernel, strides, pads = (node.attributes[k] for k in ("kernel_shape", "strides", "pads"))
    size, result = d.shape(x)[2:], d.shape(y)[2:]
    read = [(result[i] - 1) * strides[i] + kernel[i] for i in range(2)]  # rows and columns, padding included
    after = [max(0, read[i] - size[i] - pads[i]) for i in range(2)]
    if any(pads[:2]) or any(after):
        x = f.emit("Pad", x, pads=[0, 0, *pads[:2], 0, 0, *after], value=-LARGEST)
    first, taken = [], ""
    for i, j in offsets:
        ends = [i + (result[0] - 1) * strides[0] + 1, j + (result[1] - 1) * strides[1] + 1]
        window = f.emit("Slice", x, axes=[2, 3], starts=[i, j], ends=ends, steps=list(strides))
        equal = f.emit("Equal", window, y)
        first.append(f.emit("And", equal, f.emit("Not", taken)) if taken else equal)
        taken = f.emit("Or", taken, equal) if taken else equal
    planes = []
    for bit in range((len(offsets) - 1).bit_length()):
        plane = ""
        for number, winner in enumerate(first):
            if number >> bit & 1:
                plane = f.emit("Or", plane, winner) if plane else winner
        planes.append(plane)
    return planes


@rule("AveragePool")
def average_pool(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    kernel, strides, pads = (list(node.attributes[k]) for k in ("kernel_shape", "strides", "pads"))
    channels, *size = d.shape(node.inputs[0])[1:]
    if node.attributes["ceil_mode"] or (any(pads) and not node.attributes["count_include_pad"]):
        raise DifferentiationError("an average pool with ceil_mode or uncounted padding is not lowered as one")
    share = torch.full((channels, 1, *kernel), 1.0 / math.prod(kernel), dtype=torch.float64)
    return [_fit(d, _spread(d, gradient, share, channels, strides), pads[:2], size)]


def _tiles(d: Derivation, stacked: str, kernel: Sequence[int]) -> str:
    """(N, C, k * k, H, W) -> (N, C, H * k, W * k): windows that do not overlap, side by side."""
    channels, _, height, width = d.backward.shape(stacked)[1:]
    apart = d.backward.emit("Reshape", stacked, shape=[0, channels, *kernel, height, width])
    turned = d.backward.emit("Transpose", apart, perm=[0, 1, 4, 2, 5, 3])
    return d.backward.emit("Reshape", turned, shape=[0, channels, height * kernel[0], width * kernel[1]])


def _spread(d: Derivation, gradient: str, kernel: torch.Tensor, channels: int, strides: Sequence[int]) -> str:
    """Add `kernel`, weighted by the gradient, at every window: a depthwise transposed convolution."""
    name = d.backward.constant(f"spread.{'x'.join(map(str, kernel.shape))}", kernel)
    return d.backward.emit(
        "ConvTranspose",
        gradient,
        name,
        strides=list(strides),
        pads=[0] * 4,
        dilations=[1, 1],
        group=channels,
        output_padding=[0, 0],
    )


def _fit(d: Derivation, gradient: str, starts: Sequence[int], size: Sequence[int]) -> str:
    """Rows and columns `starts` ... `starts + size` of a gradient, zeros where it does not reach."""
    have = d.backward.shape(gradient)[2:]
    short = [max(0, starts[i] + size[i] - have[i]) for i in range(2)]
    if any(short):
        gradient = d.backward.emit("Pad", gradient, pads=[0] * 6 + short, value=0.0)
    if not any(starts) and list(d.backward.shape(gradient)[2:]) == list(size):
        return gradient
    ends = [starts[i] + size[i] for i in range(2)]
    return d.backward.emit("Slice", gradient, axes=[2, 3], starts=list(starts), ends=ends, steps=[1, 1])
