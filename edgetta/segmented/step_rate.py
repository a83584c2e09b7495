"""The learning rate of each update: as given, or from the bundle's law by the number of images; damped if too fast.

A law is measured before shipping, on corruptions that are not those of the stream. Whether it suits this stream shows
in the first updates: how much one of them changes the predictions of its own images, beside what the law expects. A
rate is only ever lowered, and only one that came from a law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from edgetta.rate_law import RateLaw

DEFAULT_RATE = 5e-3
"""Where neither a rate was given nor a law was measured."""
TOLERANCE = 4.0
"""So many times the expected divergence is still taken for the law's own spread."""


@dataclass(frozen=True)
class RateChoice:
    """A learning rate and where it comes from."""

    rate: float
    reason: str  # in words, for people


def choose_rate(given: float | None, law: RateLaw | None, momentum: float, images: int) -> RateChoice:
    """The rate of an update on so many images, before any damping.

    Args:
        given: by the user or the bundle; it wins.
        law: None where none was measured. It was made for a momentum of its own; under another one the rate is scaled
            so that what a gradient moves in all, rate / (1 - momentum), stays.
        momentum: of SGD.
        images: that the update sees.
    """
    if given is not None:
        return RateChoice(given, "as given")
    if law is None:
        return RateChoice(DEFAULT_RATE, "the default; no rate law was measured")
    if law.optimizer not in ("sgd", "momentum"):
        return RateChoice(DEFAULT_RATE, f"the default; the rate law is for {law.optimizer}, not for SGD")
    rate = law.rate(images) * (1 - momentum) / (1 - law.momentum)
    return RateChoice(rate, f"the rate law at {images} images, {law.regime(images)}")


class StepRate:
    """Gives the rate update by update, and watches the first ones.

    Args:
        given, law, momentum: as in `choose_rate`.
        watched: so many updates are watched; 0: none.
    """

    def __init__(self, given: float | None, law: RateLaw | None, momentum: float, watched: int) -> None:
        self.given, self.law, self.momentum = given, law, momentum
        self.damping = 1.0  # at most 1, of what the law says
        expects = given is None and law is not None and bool(law.divergence)
        self._left = watched if expects else 0
        self._ratios: list[float] = []

    def choice(self, images: int) -> RateChoice:
        """The rate of an update on so many images, and why."""
        chosen = choose_rate(self.given, self.law, self.momentum, images)
        if self.damping == 1.0:
            return chosen
        why = f"{chosen.reason}, damped: the first updates changed predictions more than expected"
        return RateChoice(chosen.rate * self.damping, why)

    @property
    def watching(self) -> bool:
        """Whether the next update is to be followed by `watch`."""
        return self._left > 0

    def watch(self, before: Tensor, after: Tensor) -> None:
        """Logits (N, classes) of an update's images before it and after it.

        After the last watched update the rate is damped if the median of observed over expected divergence exceeds
        `TOLERANCE`: by the root of that ratio, since divergence grows with the square of the rate.
        """
        assert self.law is not None
        self._left -= 1
        ratio = divergence(before, after) / self.law.expected_divergence(len(before))
        self._ratios.append(ratio if math.isfinite(ratio) else math.inf)
        if self._left == 0:
            ratio = sorted(self._ratios)[len(self._ratios) // 2]
            if ratio > TOLERANCE:
                self.damping = max(ratio**-0.5, 1e-3)


def divergence(before: Tensor, after: Tensor) -> float:
    """Mean Kullback-Leibler divergence, in nats per image, of the predictions `after` from those `before`."""
    old, new = before.double().log_softmax(1), after.double().log_softmax(1)  # differences below float32
    return float((old.exp() * (old - new)).sum(1).mean())
