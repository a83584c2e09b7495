"""From the trained towards the fine-tuned weights, as far as robustness allows (step 3 of RiFT).

The constraint is statistical: the one-sided upper bound on the robust accuracy lost, from paired comparison of the two
models on the same adversarial images, must not exceed what is allowed. Images are those of a validation part; nothing
is chosen on test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.attack import Attack, PairedLoss, adversarial_images, classified_right, fewest_images
from edgetta.offline.attack.confidence import all_right

Progress = Callable[[int, int, str], None]

COARSE = tuple(step / 10 for step in range(1, 11))
REFINED = 0.02  # distance of the points between the last allowed and the first refused one


@dataclass(frozen=True)
class Constraint:
    """How much robust accuracy may be lost.

    Raises:
        UsageError: a loss that is not between 0 and 1.
    """

    loss: float = 0.01  # of robust accuracy, 0 to 1: upper bound at 95 % confidence

    def __post_init__(self) -> None:
        if not 0 < self.loss < 1:
            raise UsageError(f"the robust accuracy that may be lost is a share between 0 and 1, not {self.loss}")

    def check(self, images: int) -> None:
        """Find out beforehand whether so many images can show it.

        Raises:
            UsageError: too few images, even if the two models never differ.
        """
        needed = fewest_images(self.loss)
        if images < needed:
            raise UsageError(
                f"{images} validation images cannot show with 95 % confidence that at most {100 * self.loss:g} points "
                f"of robust accuracy are lost: that takes {needed} at least, and some thousand where models differ. "
                "Keep more images apart, or allow a larger loss"
            )


@dataclass(frozen=True)
class Point:
    """Accuracies (0 to 1) on the validation images at one place between the trained and the fine-tuned weights."""

    alpha: float
    clean: float
    robust: float  # right on the image and on every fixed adversarial image of it
    robust_loss: float  # against the trained weights, on the same adversarial images
    robust_loss_upper: float
    attacked: bool = False  # its own adversarial images are among them


@dataclass(frozen=True)
class Interpolation:
    """The points that were looked at, by alpha, and the chosen one; alpha 0 where nothing was allowed."""

    points: tuple[Point, ...]
    alpha: float

    @property
    def clean(self) -> float:
        """Clean accuracy on the validation images at the chosen point."""
        return next(point.clean for point in self.points if point.alpha == self.alpha)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Interpolation:
        """Read what `to_json` wrote."""
        return Interpolation(tuple(Point(**point) for point in data["points"]), data["alpha"])


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end, of the floating-point tensors that differ; the others are those of `start`."""
    return {
        name: torch.lerp(value, end[name].to(value), alpha)
        if value.is_floating_point() and not torch.equal(value, end[name])
        else value
        for name, value in start.items()
    }


def interpolate(
    model: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    validation: tuple[Tensor, Tensor],
    attack: Attack,
    constraint: Constraint | None = None,
    *,
    start_points: Tensor | None = None,
    batch: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interpolation:
    """Find the point with the highest clean accuracy that the constraint allows; `model` ends there.

    A coarse grid, then points near the constraint, are judged on fixed adversarial images: those against the trained
    and those against the fine-tuned weights. Robustness need not fall evenly along the way, so the whole grid is
    looked at. The best allowed point is then attacked itself, and given up for the next best where it no longer
    meets the constraint. Images that weights have wrong already are not attacked for them: the trained weights are
    then not tried on such points either, so that the loss comes out too high rather than too low.

    Args:
        model: of which `start` and `end` are state dictionaries.
        start: trained weights.
        end: fine-tuned ones.
        validation: images and labels.
        attack: for robust accuracy.
        constraint: what may be lost.
        start_points: adversarial images against the trained weights, where they are there already.
        batch, seed, progress: images at a time; of the attack; told of points.

    Raises:
        UsageError: too few validation images for the constraint.
    """
    constraint = constraint or Constraint()
    images, labels = validation
    constraint.check(len(labels))

    def attacked(weights: Mapping[str, Tensor], sets: list[Tensor]) -> Tensor:
        standing = all_right(right(weights, sets))
        return adversarial_images(model, images, labels, attack, only=standing, batch=batch, seed=seed)

    def right(weights: Mapping[str, Tensor], sets: list[Tensor]) -> list[Tensor]:
        model.load_state_dict(weights)
        return [classified_right(model, some, labels, batch) for some in (images, *sets)]

    references: list[Tensor] = []  # what the trained weights have right: on the images, then on each set

    def judged(alpha: float, sets: list[Tensor], own: bool) -> Point:
        weights = between(start, end, alpha)
        if len(references) <= len(sets):
            references[:] = right(start, sets)
        masks = right(weights, sets)
        loss = PairedLoss.of(all_right(references[: len(sets) + 1]), all_right(masks))
        clean, robust = (float(mask.float().mean()) for mask in (masks[0], all_right(masks)))
        return Point(alpha, clean, robust, loss.value, loss.upper(), own)

    sets = [attacked(start, []) if start_points is None else start_points]
    sets.append(attacked(end, sets))
    points = {0.0: judged(0.0, sets, False)}
    for grid in (COARSE, None):
        for alpha in _near_the_constraint(points, constraint) if grid is None else grid:
            points[alpha] = judged(alpha, sets, False)
            if progress is not None:
                progress(len(points), len(COARSE) + 1, f"alpha {alpha:g}")
    candidates = [point for point in points.values() if point.alpha > 0 and _allowed(point, points[0.0], constraint)]
    chosen = 0.0
    for point in sorted(candidates, key=lambda point: (-point.clean, point.alpha))[:TRIALS]:
        own = attacked(between(start, end, point.alpha), sets)
        del references[len(sets) + 1 :]  # another point's own set
        points[point.alpha] = judged(point.alpha, [*sets, own], True)
        if _allowed(points[point.alpha], points[0.0], constraint):
            chosen = point.alpha
            break
    model.load_state_dict(between(start, end, chosen))
    return Interpolation(tuple(points[alpha] for alpha in sorted(points)), chosen)


TRIALS = 4
"""Points that are attacked themselves at most, before the trained weights are kept."""


def _allowed(point: Point, start: Point, constraint: Constraint) -> bool:
    return point.robust_loss_upper <= constraint.loss and point.clean > start.clean


def _near_the_constraint(points: Mapping[float, Point], constraint: Constraint) -> list[float]:
    """Alphas between the furthest allowed point and the next one."""
    order = sorted(points)
    allowed = [alpha for alpha in order if points[alpha].robust_loss_upper <= constraint.loss]
    last = max(allowed, default=0.0)
    following = next((alpha for alpha in order if alpha > last), None)
    if following is None:
        return []
    count = round((following - last) / REFINED)
    return [round(last + REFINED * step, 4) for step in range(1, count)]
