"""An attack on a network that sees a whole batch at once, as one with the statistics of batches does.

There the point that fools the network about one image depends on the other images of the batch: points of different
steps cannot be put together. So whole batches are compared, and the one with the most wrong answers is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgetta.offline.attack import PGD
from edgetta.offline.attack.loss import LOSSES, gradient_at


def batch_attack(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    attack: PGD,
    *,
    starts: Sequence[Tensor] = (),
    seed: int = 0,
) -> Tensor:
    """The worst batch (N, C, H, W) of all steps, of random starts (the attack's restarts) and of the given ones.

    Args:
        network: images to logits, every operation differentiable by torch, that between images included.
        images: (N, C, H, W) floats in [0, 1], as they are.
        labels: (N,).
        attack: its threat, steps, step size and loss.
        starts: more points to begin from, inside the threat's balls, such as those against another network.
        seed: of the random starts.
    """
    generator = torch.Generator().manual_seed(seed)
    loss = LOSSES[attack.loss]
    begun = [*starts, *(attack.threat.random_start(images, generator) for _ in range(attack.restarts))]
    worst, worst_place = images, _place(network(images).detach(), labels, loss)
    for points in begun:
        for _ in range(attack.steps + 1):
            logits, _, gradient = gradient_at(network, points, labels, loss)
            place = _place(logits, labels, loss)
            if place > worst_place:
                worst, worst_place = points, place
            points = attack.threat.project(points + attack.step * attack.threat.ascent(gradient), images)
    return worst


def _place(logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, float]:
    """How bad a batch is: wrong answers, and among equals the mean loss."""
    return int((logits.argmax(1) != labels).sum()), float(loss(logits, labels).mean())
