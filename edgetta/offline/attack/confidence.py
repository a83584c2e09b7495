"""How sure a measured accuracy is, and a difference between two models that saw the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from edgetta.errors import UsageError

LEVEL = 0.95


@dataclass(frozen=True)
class Proportion:
    """A share of images, and the interval that holds the true share with `LEVEL` confidence (Wilson 1927)."""

    successes: int
    count: int

    @property
    def value(self) -> float:
        return self.successes / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end, both within [0, 1]."""
        z = NormalDist().inv_cdf((1 + LEVEL) / 2)
        centre = (self.successes + z * z / 2) / (self.count + z * z)
        variance = self.value * (1 - self.value) / self.count + (z / (2 * self.count)) ** 2
        reach = z * math.sqrt(variance) / (1 + z * z / self.count)
        return max(0.0, centre - reach), min(1.0, centre + reach)

    @staticmethod
    def of(right: Tensor) -> Proportion:
        """From a mask (N,) of images that were classified right.

        Raises:
            UsageError: no images.
        """
        if len(right) == 0:
            raise UsageError("there is no image to measure accuracy on; give one at least")
        return Proportion(int(right.sum()), len(right))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


@dataclass(frozen=True)
class PairedLoss:
    """What a second model loses against a first on the same images: far surer than two accuracies on their own.

    Only images on which the two differ carry information. Bounds are those of the score test for paired proportions
    (Tango, Statistics in Medicine 17, 1998), which holds for small counts, also where no image differs.
    """

    first_only: int  # images that only the first model has right
    second_only: int
    count: int

    @staticmethod
    def of(first: Tensor, second: Tensor) -> PairedLoss:
        """From two masks (N,) over the same images.

        Raises:
            UsageError: masks of different lengths, or no images.
        """
        if first.shape != second.shape or len(first) == 0:
            raise UsageError(
                f"{len(first)} and {len(second)} images cannot be paired; measure both on the same images"
            )
        return PairedLoss(int((first & ~second).sum()), int((~first & second).sum()), len(first))

    @property
    def value(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.first_only - self.second_only) / self.count

    def upper(self, level: float = LEVEL) -> float:
        """One-sided upper bound on the true loss: exceeded with probability 1 - level at most."""
        return self._bound(NormalDist().inv_cdf(level))

    def lower(self, level: float = LEVEL) -> float:
        """One-sided lower bound; a negative one leaves open that the second model is better."""
        return -PairedLoss(self.second_only, self.first_only, self.count).upper(level)

    def _bound(self, z: float) -> float:
        """The loss above `value` that the score test just does not refuse."""
        low, high = self.value, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._score(middle) > -z else (low, middle)
        return high

    def _score(self, loss: float) -> float:
        """The score statistic of a supposed true loss: standard normal if it is the true one."""
        n, b, c = self.count, self.first_only, self.second_only
        # The most likely share of "only the second" under the supposed loss, root of a q^2 + k q + m.
        k = -b - c + (2 * n - b + c) * loss
        m = -c * loss * (1 - loss)
        q = (math.sqrt(max(0.0, k * k - 8 * n * m)) - k) / (4 * n)
        variance = n * (2 * q + loss * (1 - loss))
        distance = b - c - n * loss
        if variance <= 0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)


def fewest_images(loss: float, level: float = LEVEL) -> int:
    """How many images it takes to show that at most `loss` is lost, even where no image differs."""
    z = NormalDist().inv_cdf(level)
    return math.ceil(z * z * (1 - loss) / loss)


def all_right(masks: list[Tensor]) -> Tensor:
    """Images (N,) that were classified right every time."""
    return torch.stack(masks).all(0)
