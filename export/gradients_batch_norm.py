"""Gradient rule of BatchNorm: with constant statistics, or through those of the stream from one bit per element.

The full gradient of BatchNorm for its input, g being that of its output, is

    weight / deviation * (g - mean(g) - xhat * mean(g * xhat)):

of g, what neither a constant nor xhat explains (Ioffe and Szegedy 2015, section 3). Constant statistics leave g as it
is. That costs nothing to keep, and it is what the contract calls exact; but where weights adapt, most of the step is
then undone by the statistics that follow it. Keeping xhat would cost 32 bits per element. One bit, whether an element
lies above the mean, goes most of the way: g loses its mean over the elements above, and its mean over those below.
"""

from __future__ import annotations

import math

import torch

from edgetta.export.derivation import Derivation, rule
from edgetta.segments.graph import LARGEST, Node

SPREAD = math.sqrt(8 / math.pi)
"""Of a standard normal variable: the mean of its upper half minus that of its lower half."""


@rule("BatchNormalization")
def batch_normalization(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Residuals: one scale per channel, weight / sqrt(var + epsilon); a bit per element where the weight adapts."""
    x, weight, bias, mean, var = node.inputs
    rank = len(d.shape(node.output))
    column = [1, d.shape(node.output)[1], *([1] * (rank - 2))]
    axes = [0, *range(2, rank)]
    to_bias = None if d.constant(bias) else d.backward.emit("ReduceSum", gradient, axes=axes, keepdims=0)
    if d.constant(var):
        factor = d.forward.constants[weight] / torch.sqrt(d.forward.constants[var] + node.attributes["epsilon"])
        kept = d.backward.constant(f"{weight}.scale", factor.reshape(column))
        return [d.backward.emit("Mul", gradient, kept), None, to_bias]
    forward = d.forward
    deviation = forward.emit("Sqrt", forward.emit("Add", var, forward.scalar(node.attributes["epsilon"])))
    scale = d.save(forward.emit("Div", weight, deviation), "scale")
    if d.constant(weight):
        return [d.backward.emit("Mul", gradient, d.backward.emit("Reshape", scale, shape=column)), None, to_bias]
    above = d.save(forward.emit("Greater", x, forward.emit("Reshape", mean, shape=column)), "mask")
    to_x, to_weight, total = _through_statistics(d, gradient, above, scale, column)
    return [to_x, to_weight, None if d.constant(bias) else total]


def _through_statistics(
    d: Derivation, gradient: str, above: str, scale: str, column: list[int]
) -> tuple[str, str, str]:
    """Gradients of the input, of the weight, and of the bias.

    The weight's is sum(g * xhat) with xhat as two numbers per channel, those of a normal variable: SPREAD apart, their
    mean over the batch zero.
    """
    emit, size = d.backward.emit, math.prod(d.shape(above)[2:])
    mask = emit("Masked", d.backward.constant("one", torch.ones(1, 1, *column[2:])), above)
    g_above = emit("Mul", gradient, mask)

    def image_sums(name: str) -> str:  # (N, C)
        return emit("ReduceSum", name, axes=list(range(2, len(column))), keepdims=0) if len(column) > 2 else name

    def batch_sum(name: str) -> str:  # (C,)
        return emit("ReduceSum", name, axes=[0], keepdims=0)

    ones = image_sums(mask)
    count_above = batch_sum(ones)
    count_below = batch_sum(emit("Sub", d.backward.scalar(size), ones))
    total_above = batch_sum(image_sums(g_above))
    total = batch_sum(image_sums(gradient))
    total_below = emit("Sub", total, total_above)

    def mean(total: str, count: str) -> str:  # of a side without elements: 0, as its total
        return emit("Div", total, emit("Clip", count, min=1.0, max=LARGEST))

    mean_above, mean_below = mean(total_above, count_above), mean(total_below, count_below)

    def scaled(name: str) -> str:
        return emit("Reshape", emit("Mul", name, scale), shape=column)

    step = emit("Mul", mask, scaled(emit("Sub", mean_below, mean_above)))
    below = emit("Sub", emit("Mul", gradient, emit("Reshape", scale, shape=column)), scaled(mean_below))
    to_x = emit("Add", below, step)
    # SPREAD * (total_above - share_above * total) = SPREAD * n * share_above * share_below * (mean_above - mean_below)
    count = emit("Add", count_above, count_below)
    balanced = emit("Div", emit("Mul", count_above, count_below), count)
    slope = emit("Mul", balanced, d.backward.scalar(SPREAD))
    return to_x, emit("Mul", slope, emit("Sub", mean_above, mean_below)), total
