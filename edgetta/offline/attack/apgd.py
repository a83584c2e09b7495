"""Auto-PGD (Croce and Hein 2020, algorithm 1): PGD with momentum that halves its step where it stops paying."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.loss import LOSSES, Classifier, LossName, gradient_at
from edgetta.offline.attack.threat import Threat
from edgetta.offline.attack.worst_case import WorstCase

MOMENTUM = 0.75  # alpha of the paper: weight of the new step
ENOUGH = 0.75  # rho: steps that must have raised the loss between two checkpoints


@dataclass(frozen=True)
class APGD:
    """Auto-PGD with cross-entropy or DLR loss. Nothing to tune but how long.

    Raises:
        UsageError: a number out of its range.
    """

    threat: Threat = field(default_factory=Threat)
    steps: int = 100
    restarts: int = 1
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"APGD with {self.steps} steps and {self.restarts} restarts: give 1 or more of each")
        if self.loss not in LOSSES:
            raise UsageError(f"loss {self.loss!r} is unknown; choose {' or '.join(LOSSES)}")

    @property
    def name(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"APGD-{self.loss.upper()}, {self.steps} steps{restarts}"

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The worst point of each image, as `PGD.perturb`."""
        worst = WorstCase(images)
        with evaluation_mode(model):
            for _ in range(self.restarts):
                rows = worst.standing()
                if not len(rows):
                    break
                self._run(model, images[rows], labels[rows], rows, worst, generator)
        return worst.points

    def _run(
        self,
        model: Classifier,
        images: Tensor,
        labels: Tensor,
        rows: Tensor,
        worst: WorstCase,
        generator: torch.Generator,
    ) -> None:
        threat, loss = self.threat, LOSSES[self.loss]
        points = threat.surface_start(images, generator)
        previous = points
        logits, values, gradient = gradient_at(model, points, labels, loss)
        worst.see(points, logits, labels, values, rows)
        best, best_points, best_gradient = values.clone(), points.clone(), gradient.clone()
        step = torch.full((len(images), *[1] * (images.dim() - 1)), 2 * threat.epsilon).to(images)
        rises = torch.zeros_like(best)
        best_at_checkpoint, halved_at_checkpoint = best.clone(), torch.ones_like(best, dtype=torch.bool)
        checkpoints = _checkpoints(self.steps)
        last = 0
        for number in range(self.steps):
            target = threat.project(points + step * threat.ascent(gradient), images)
            share = MOMENTUM if number else 1.0
            moved = threat.project(points + share * (target - points) + (1 - share) * (points - previous), images)
            previous, points = points, moved
            earlier = values
            logits, values, gradient = gradient_at(model, points, labels, loss)
            worst.see(points, logits, labels, values, rows)
            rises += values > earlier
            better = values > best
            best = torch.where(better, values, best)
            best_points[better], best_gradient[better] = points[better], gradient[better]
            if number + 1 not in checkpoints:
                continue
            # Condition 1: too few steps rose. Condition 2: the step was kept last time, and still nothing was won.
            rare = rises <= ENOUGH * (number + 1 - last)
            halve = rare | (~halved_at_checkpoint & (best_at_checkpoint >= best))
            halved_at_checkpoint, best_at_checkpoint = halve, best.clone()
            step[halve] /= 2
            points, gradient = points.clone(), gradient.clone()
            points[halve], gradient[halve] = best_points[halve], best_gradient[halve]
            rises.zero_()
            last = number + 1


def _checkpoints(steps: int) -> frozenset[int]:
    """Numbers of the steps after which the step size is looked at: 22 % of all, then ever shorter periods, min 6 %."""
    period, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found, at = [], period
    while at <= steps:
        found.append(at)
        period = max(period - shrink, shortest)
        at += period
    return frozenset(found)
