"""Projected gradient descent, the attack of Madry et al. (2018), with random starts and restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.loss import LOSSES, Classifier, LossName, SampleLoss, gradient_at
from edgetta.offline.attack.threat import Threat
from edgetta.offline.attack.worst_case import WorstCase


@dataclass(frozen=True)
class PGD:
    """Steps of a fixed size along the steepest ascent, projected each time.

    Raises:
        UsageError: a number out of its range.
    """

    threat: Threat = field(default_factory=Threat)
    steps: int = 20
    step_size: float | None = None  # of pixels in [0, 1]; None: 2.5 epsilon / steps, which reaches every corner
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"PGD with {self.steps} steps and {self.restarts} restarts: give 1 or more of each")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise UsageError(f"step size {self.step_size} of PGD is not positive")
        if self.loss not in LOSSES:
            raise UsageError(f"loss {self.loss!r} is unknown; choose {' or '.join(LOSSES)}")

    @property
    def name(self) -> str:
        restarts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"PGD-{self.steps}{'' if self.loss == 'ce' else f' ({self.loss})'}{restarts}"

    @property
    def step(self) -> float:
        """The size of a step."""
        return 2.5 * self.threat.epsilon / self.steps if self.step_size is None else self.step_size

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The worst point (N, C, H, W) over all steps and restarts for each image: one that fools, else highest loss.

        Args:
            model: attacked in evaluation mode; modes and gradients are put back afterwards.
            images: (N, C, H, W) in [0, 1], on the model's device.
            labels: (N,).
            generator: on the CPU, for the starts.
        """
        worst = WorstCase(images)
        loss = LOSSES[self.loss]
        with evaluation_mode(model):
            for _ in range(self.restarts):
                rows = worst.standing()
                if not len(rows):
                    break
                some, theirs = images[rows], labels[rows]
                points = self._start(some, generator)
                for _ in range(self.steps):
                    logits, values, gradient = gradient_at(model, points, theirs, loss)
                    worst.see(points, logits, theirs, values, rows)
                    points = self._next(points, gradient, some)
                with torch.no_grad():
                    logits = model(points)
                worst.see(points, logits, theirs, loss(logits, theirs), rows)
        return worst.points

    def last_point(
        self,
        model: Classifier,
        images: Tensor,
        targets: Tensor,
        loss: SampleLoss | None = None,
        *,
        start: Tensor,
    ) -> Tensor:
        """Where one run ends, as adversarial training takes it: no search for the worst point, no restarts.

        Args:
            targets: labels (N,), or whatever `loss` takes.
            loss: of each image; the attack's own by default.
            start: the points (N, C, H, W) that the run begins at.
        """
        with evaluation_mode(model):
            points = start
            for _ in range(self.steps):
                _, _, gradient = gradient_at(model, points, targets, loss or LOSSES[self.loss])
                points = self._next(points, gradient, images)
        return points

    def _start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.threat.random_start(images, generator) if self.random_start else images

    def _next(self, points: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        return self.threat.project(points + self.step * self.threat.ascent(gradient), images)
