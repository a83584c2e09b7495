"""Normalisation of the meta-networks, forward and backward written out.

Channels are dimension 1; every other dimension is reduced. Statistics follow a policy:
batch  of the current batch, with the full gradient through them
ema    running ones, constants in the backward, for small batches
none   no normalisation, a per-channel affine map: for backbones without BatchNorm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["batch", "ema", "none"]
EPSILON = 1e-5


@dataclass(frozen=True)
class Moments:
    """What a normalisation was computed with: mean and 1 / sqrt(variance + epsilon), each (C,)."""

    mean: Tensor
    inverse_deviation: Tensor
    differentiable: bool  # True when they are functions of the input (policy "batch")

    @property
    def nbytes(self) -> int:
        return 4 * (self.mean.numel() + self.inverse_deviation.numel())


def moments(x: Tensor, statistics: Statistics, mean: Tensor, variance: Tensor, momentum: float) -> Moments:
    """The moments that normalise x (N, C, ...) under a policy; moves `mean` and `variance` in place by `momentum`.

    Under "ema" momentum 1 forgets everything but this batch and momentum 0 changes nothing.
    """
    if statistics == "none":
        return Moments(torch.zeros_like(mean), torch.ones_like(mean), False)
    if statistics == "batch":
        batch_mean, batch_variance = mean_and_variance(x)
        mean.copy_(batch_mean)  # where running statistics take over when a smaller batch comes
        variance.copy_(batch_variance)
        return Moments(batch_mean, torch.rsqrt(batch_variance + EPSILON), True)
    if momentum > 0:
        batch_mean, batch_variance = mean_and_variance(x)
        mean.lerp_(batch_mean, momentum)
        variance.lerp_(batch_variance, momentum)
    return Moments(mean.clone(), torch.rsqrt(variance + EPSILON), False)


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and biased variance of (N, C, ...).

    Two passes, mean first; several times faster on a CPU than torch.var_mean over these axes, and as accurate.
    """
    count = x.numel() // x.shape[1]
    mean = channel_sum(x) / count
    centred = x - column(mean, x)
    return mean, channel_dot(centred, centred) / count


def normalise(x: Tensor, m: Moments, weight: Tensor, bias: Tensor) -> Tensor:
    """weight * (x - mean) / deviation + bias, per channel."""
    scale = weight * m.inverse_deviation
    return torch.addcmul(column(bias - m.mean * scale, x), x, column(scale, x))


def parameter_gradients(grad: Tensor, x: Tensor, m: Moments) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias (C,) for the gradient of the normalised output."""
    total = channel_sum(grad)
    correlation = channel_dot(grad, x)
    return (correlation - total * m.mean) * m.inverse_deviation, total


def input_gradient(grad: Tensor, x: Tensor, m: Moments, weight: Tensor) -> Tensor:
    """Gradient of x for the gradient of the normalised output."""
    scale = weight * m.inverse_deviation
    if not m.differentiable:
        return grad * column(scale, grad)
    count = x.numel() // x.shape[1]
    to_weight, to_bias = parameter_gradients(grad, x, m)
    # scale * (grad - mean(grad) - xhat * mean(grad * xhat)), with xhat = (x - mean) * inverse_deviation
    slope = -scale * to_weight * m.inverse_deviation / count
    offset = -scale * to_bias / count - slope * m.mean
    result = torch.addcmul(column(offset, x), x, column(slope, x))
    return result.addcmul_(grad, column(scale, grad))


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
