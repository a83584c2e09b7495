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
    attacked: bool = False  # adversarial images against this very point are among them


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
    looked at. The best allowed point is then attacked itself; what was found against it counts for all points from
    there on, and how much more was lost than before is expected of the others, in proportion to alpha. Where no other
    point is expected to hold, the way between what holds and what does not is halved.

    Images that weights have wrong already are not attacked for them: the trained weights are then not tried on such
    points either, so that the loss comes out too high rather than too low.

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
    constraint.check(len(validation[1]))
    way = _Way(model, start, end, validation, attack, batch, seed)
    way.add_attacked(0.0, start_points)
    way.add_attacked(1.0)
    alphas = {0.0, *COARSE}
    surprise = 0.0  # how much an attack on a point itself adds to the bound on its loss, for alpha 1
    for trial in range(TRIALS + 1):
        points = {alpha: way.point(alpha) for alpha in sorted(alphas)}
        for alpha in _near_the_constraint(points, constraint):
            points[alpha] = way.point(alpha)
        alphas = set(points)
        if progress is not None:
            progress(trial, TRIALS, f"{len(points)} points")
        allowed = [point for point in points.values() if _allowed(point, points[0.0], constraint)]
        best = max((point for point in allowed if point.attacked), key=_merit, default=points[0.0])
        tried = _promising(allowed, best, constraint, surprise)
        if tried is None or trial == TRIALS:
            break
        way.add_attacked(tried.alpha)
        added = way.point(tried.alpha).robust_loss_upper - tried.robust_loss_upper
        surprise = max(surprise, added / tried.alpha)
    model.load_state_dict(between(start, end, best.alpha))
    return Interpolation(tuple(points[alpha] for alpha in sorted(points)), best.alpha)


TRIALS = 6
"""Points that are attacked themselves at most, before the trained weights are kept."""


class _Way:
    """The points between two states of a model, judged on sets of images that grow."""

    def __init__(
        self,
        model: nn.Module,
        start: Mapping[str, Tensor],
        end: Mapping[str, Tensor],
        validation: tuple[Tensor, Tensor],
        attack: Attack,
        batch: int,
        seed: int,
    ) -> None:
        self.model, self.start, self.end = model, start, end
        self.images, self.labels = validation
        self.attack, self.batch, self.seed = attack, batch, seed
        self.sets = [self.images]
        self.attacked: set[float] = set()
        self._masks: dict[float, list[Tensor]] = {}  # what a point has right in each set

    def add_attacked(self, alpha: float, points: Tensor | None = None) -> None:
        """One more set: adversarial images against a point, for the images that it has right in all sets so far."""
        if points is None:
            standing = all_right(self._right(alpha))
            self.model.load_state_dict(between(self.start, self.end, alpha))
            points = adversarial_images(
                self.model, self.images, self.labels, self.attack, only=standing, batch=self.batch, seed=self.seed
            )
        self.sets.append(points)
        self.attacked.add(alpha)

    def point(self, alpha: float) -> Point:
        """Accuracies on all sets, and what is lost against the trained weights there."""
        right = self._right(alpha)
        loss = PairedLoss.of(all_right(self._right(0.0)), all_right(right))
        clean, robust = (float(mask.float().mean()) for mask in (right[0], all_right(right)))
        return Point(alpha, clean, robust, loss.value, loss.upper(), alpha in self.attacked)

    def _right(self, alpha: float) -> list[Tensor]:
        masks = self._masks.setdefault(alpha, [])
        if len(masks) < len(self.sets):
            self.model.load_state_dict(between(self.start, self.end, alpha))
            for some in self.sets[len(masks) :]:
                masks.append(classified_right(self.model, some, self.labels, self.batch))
        return masks


def _allowed(point: Point, start: Point, constraint: Constraint) -> bool:
    return point.alpha > 0 and point.robust_loss_upper <= constraint.loss and point.clean > start.clean


def _merit(point: Point) -> tuple[float, float]:
    return point.clean, -point.alpha


def _promising(allowed: list[Point], best: Point, constraint: Constraint, surprise: float) -> Point | None:
    """The point to attack next: the best that will still be allowed then, as far as one can tell."""
    better = [point for point in allowed if not point.attacked and point.clean > best.clean]
    hopeful = [point for point in better if point.robust_loss_upper + surprise * point.alpha <= constraint.loss]
    if hopeful or not better:
        return max(hopeful, key=_merit, default=None)
    # None is likely to hold: halve the way between what holds and what does not.
    middle = (best.alpha + max(point.alpha for point in better)) / 2
    return min(better, key=lambda point: (abs(point.alpha - middle), point.alpha))


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
