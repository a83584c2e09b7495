"""Normalisation of the meta-networks, forward and backward written out.

Channels are dimension 1; every other dimension is reduced. Statistics follow a policy:
batch  of the current batch, with the full gradient through them
ema    running ones, constants in the backward, for small batches
none   no normalisation, a per-channel affine map: for backbones without BatchNorm

Sums over the batch are gathered piece by piece (`MomentSums`, `GradientSums`), so that neither direction needs a
tensor of the whole batch that it would only sum up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["batch", "ema", "none"]
EPSILON = 1e-5
_CACHED = 1 << 18  # elements of a piece: 1 MB of float32, which stays in a processor's cache from one pass to the next


@dataclass(frozen=True)
class Moments:
    """What a normalisation was computed with: mean and 1 / sqrt(variance + epsilon), each (C,)."""

    mean: Tensor
    inverse_deviation: Tensor
    differentiable: bool  # True when they are functions of the input (policy "batch")

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.mean, self.inverse_deviation))


class MomentSums:
    """Mean and biased variance of pieces of a batch, merged (Chan et al., 1983): as accurate as two passes."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take in x (N, C, ...)."""
        count = x.numel() // x.shape[1]
        mean = channel_sum(x) / count
        centred = x - column(mean, x)
        self._counts.append(count)
        self._means.append(mean)
        self._squares.append(channel_dot(centred, centred))

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """(C,) each, of everything that was taken in."""
        if len(self._counts) == 1:
            return self._means[0], self._squares[0] / self._counts[0]
        means, total = torch.stack(self._means), sum(self._counts)
        weights = torch.tensor(self._counts, dtype=means.dtype, device=means.device)[:, None] / total
        mean = (means * weights).sum(0)
        between = ((means - mean).square() * weights).sum(0)
        return mean, torch.stack(self._squares).sum(0) / total + between


class GradientSums:
    """Sums of a gradient g and of g * x over the batch, (C,) each: what a normalisation's gradients are made of."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._correlation: Tensor | None = None

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Take in a piece of the gradient and the same piece of x."""
        total, correlation = channel_sum(grad), channel_dot(grad, x)
        self._total = total if self._total is None else self._total.add_(total)
        self._correlation = correlation if self._correlation is None else self._correlation.add_(correlation)

    def parameter_gradients(self, m: Moments) -> tuple[Tensor, Tensor]:
        """Gradients of weight and bias (C,) for the gradient of the normalised output."""
        assert self._total is not None and self._correlation is not None
        return (self._correlation - self._total * m.mean) * m.inverse_deviation, self._total


def moments(x: Tensor, statistics: Statistics, mean: Tensor, variance: Tensor, momentum: float) -> Moments:
    """The moments that normalise x (N, C, ...) under a policy; moves `mean` and `variance` in place by `momentum`.

    Under "ema" momentum 1 forgets everything but this batch and momentum 0 changes nothing.
    """
    sums = MomentSums()
    if needs_batch(statistics, momentum):
        for piece in pieces(x):
            sums.add(piece)
    return moments_of(sums, statistics, mean, variance, momentum)


def needs_batch(statistics: Statistics, momentum: float) -> bool:
    """Whether a policy asks for statistics of the batch."""
    return statistics == "batch" or (statistics == "ema" and momentum > 0)


def moments_of(sums: MomentSums, statistics: Statistics, mean: Tensor, variance: Tensor, momentum: float) -> Moments:
    """As `moments`, of a batch that was summed up already, where `needs_batch`."""
    if statistics == "none":
        return Moments(torch.zeros_like(mean), torch.ones_like(mean), False)
    if statistics == "batch":
        batch_mean, batch_variance = sums.mean_and_variance()
        mean.copy_(batch_mean)  # where running statistics take over when a smaller batch comes
        variance.copy_(batch_variance)
        return Moments(batch_mean, torch.rsqrt(batch_variance + EPSILON), True)
    if momentum > 0:
        batch_mean, batch_variance = sums.mean_and_variance()
        mean.lerp_(batch_mean, momentum)
        variance.lerp_(batch_variance, momentum)
    return Moments(mean.clone(), torch.rsqrt(variance + EPSILON), False)


def normalise(x: Tensor, m: Moments, weight: Tensor, bias: Tensor) -> Tensor:
    """weight * (x - mean) / deviation + bias, per channel."""
    scale = weight * m.inverse_deviation
    return (x * column(scale, x)).add_(column(bias - m.mean * scale, x))


def input_gradient(
    grad: Tensor, x: Tensor | None, m: Moments, scale: Tensor, sums: GradientSums, count: int
) -> Tensor:
    """Gradient of the normalised input for the gradient of the normalised output, a piece of the batch at a time.

    x, m   xhat = (x - m.mean) * m.inverse_deviation; x may be anything that xhat follows from in this way
    scale  weight / deviation of the normalisation
    sums   of `grad` over the whole batch, of which each channel has `count` elements
    x and sums are read only where the moments are differentiable.
    """
    if not m.differentiable:
        return grad * column(scale, grad)
    assert x is not None
    to_weight, to_bias = sums.parameter_gradients(m)
    # scale * (grad - mean(grad) - xhat * mean(grad * xhat))
    slope = -scale * to_weight * m.inverse_deviation / count
    offset = -scale * to_bias / count - slope * m.mean
    return (x * column(slope, x)).addcmul_(grad, column(scale, grad)).add_(column(offset, x))


def pieces(x: Tensor) -> Iterator[Tensor]:
    """x in pieces along dimension 0 that fit a processor's cache; whole on other devices."""
    yield from x.split(rows_in_cache(x.shape, x.device))


def rows_in_cache(shape: torch.Size, device: torch.device) -> int:
    """How many rows of a tensor make such a piece."""
    return max(1, _CACHED // max(1, math.prod(shape[1:])) if device.type == "cpu" else shape[0])


def column(values: Tensor, like: Tensor) -> Tensor:
    """(C,) shaped to broadcast along dimension 1 of `like`."""
    return values.view(1, -1, *([1] * (like.dim() - 2)))


def channel_sum(x: Tensor) -> Tensor:
    return x.sum([axis for axis in range(x.dim()) if axis != 1])


def channel_dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a * b over everything but the channel, (C,), without the product in memory."""
    if a.dim() == 2:
        return torch.linalg.vecdot(a.t(), b.t())
    n, c = a.shape[:2]
    return torch.linalg.vecdot(a.reshape(n, c, -1), b.reshape(n, c, -1)).sum(0)
