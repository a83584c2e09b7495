"""The rise of the robust loss when weights move inside their balls (Definition 3.1): two ways to find the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.offline.rift.robust_loss import RobustLoss

_LARGEST, _SMALLEST = 2.0, 0.5
"""First and last step of the ascent, in radii of the ball."""

_MORE_STEPS = 4
"""So many times the steps at most, where a pass takes little."""


@dataclass(frozen=True, eq=False)
class Rise:
    """The worst that an ascent found."""

    loss: float  # rise of the mean robust loss; infinite where it diverged
    accuracy: float  # robust accuracy lost, in shares of 1
    weights: dict[str, Tensor]  # where
    diverged: bool = False


def normalised_ascent(
    robust: RobustLoss,
    epsilon: float,
    steps: int,
    base: tuple[float, float],
    start: Mapping[str, Tensor] | None = None,
    gradient: Mapping[str, Tensor | None] | None = None,
) -> Rise:
    """Projected gradient ascent over one batch after another, in steps of twice the ball's radius down to half of it.

    Each step is projected, so that weights stay on the ball's surface, near where the gradient points: as in a power
    iteration. The size of the gradient plays no part, and every module gets as far as its ball allows. Steps become
    smaller, so that the last ones average over their batches. The loss is taken over all images at the end.

    Args:
        robust: the loss.
        epsilon: radius of each tensor's ball, as a share of the tensor's norm.
        steps: of the ascent, for a module that the whole network follows. Passes from a later module on take less,
            and it gets as many more: four times as many at most.
        base: loss and accuracy at the trained weights.
        start: where to begin; by default the trained weights.
        gradient: at the trained weights, where it is known: of many images, it decides which maximum the few images
            of each step then climb. Counts as a first step where no `start` is given.
    """
    radii = {name: epsilon * float(value.norm()) for name, value in robust.start.items()}

    def moved(weights: Mapping[str, Tensor], uphill: Mapping[str, Tensor | None], size: float) -> dict[str, Tensor]:
        return {
            name: _into_ball(value + size * radii[name] * _unit(uphill[name], value), robust.start[name], radii[name])
            for name, value in weights.items()
        }

    weights = dict(robust.start if start is None else start)
    if start is None and gradient is not None:
        weights = moved(weights, gradient, _LARGEST)
    steps = round(steps / max(robust.share, 1 / _MORE_STEPS))
    for step in range(steps):
        loss, uphill = robust.gradient(weights, [step % len(robust.labels)])
        if not _finite(loss, uphill):
            return Rise(math.inf, base[1], weights, diverged=True)
        weights = moved(weights, uphill, _LARGEST + (_SMALLEST - _LARGEST) * step / max(1, steps - 1))
    loss, accuracy = robust.at(weights)
    if not math.isfinite(loss):
        return Rise(math.inf, base[1], weights, diverged=True)
    return Rise(loss - base[0], base[1] - accuracy, weights)


def published_ascent(
    robust: RobustLoss,
    epsilon: float,
    base: tuple[float, float],
    generator: torch.Generator,
    *,
    epochs: int = 10,
    rate: float = 1.0,
) -> Rise:
    """The released code's ascent: plain SGD over shuffled batches, projected once per epoch, the highest loss of all.

    Args:
        robust: the loss, in the batches to take steps over (512 images as published).
        epsilon, base: see `normalised_ascent`.
        generator: for the order of the batches.
        epochs: T of Algorithm 1.
        rate: of SGD; the paper does not give it, the code says 1.
    """
    radii = {name: epsilon * float(value.norm()) for name, value in robust.start.items()}
    weights = dict(robust.start)
    found = Rise(-math.inf, 0.0, weights)
    for _ in range(epochs):
        for number in torch.randperm(len(robust.labels), generator=generator).tolist():
            loss, gradient = robust.gradient(weights, [number])
            if not _finite(loss, gradient):
                return Rise(math.inf, base[1], weights, diverged=True)
            weights = {name: value + rate * gradient[name] for name, value in weights.items()}
        weights = {name: _into_ball(value, robust.start[name], radii[name]) for name, value in weights.items()}
        loss, accuracy = robust.at(weights)
        if not math.isfinite(loss):
            return Rise(math.inf, base[1], weights, diverged=True)
        if loss - base[0] > found.loss:
            found = Rise(loss - base[0], base[1] - accuracy, weights)
    return found


def _finite(loss: float, gradient: Mapping[str, Tensor]) -> bool:
    return math.isfinite(loss) and all(bool(torch.isfinite(part).all()) for part in gradient.values())


def _unit(gradient: Tensor | None, like: Tensor) -> Tensor:
    length = 0.0 if gradient is None else float(gradient.norm())
    return torch.zeros_like(like) if gradient is None or not length > 0 else gradient / length


def _into_ball(weights: Tensor, centre: Tensor, radius: float) -> Tensor:
    offset = weights - centre
    length = float(offset.norm())
    return weights if length <= radius else centre + offset * (radius / length)
