"""The learning rate of each update: as given, or from the bundle's law by the number of images; damped if too fast.

A law is measured before shipping, on corruptions that are not those of the stream. Whether it suits this stream shows
in the first updates: how much one of them changes the predictions of its own images, beside what the law expects. A
rate is only ever lowered, and only one that came from a law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Damping:
    """What the first updates said of the law."""

    factor: float = 1.0  # at most 1, of what the law says
    ratios: tuple[float, ...] = ()  # observed over expected divergence of the updates watched so far


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


@dataclass(frozen=True)
class StepRate:
    """Gives the rate update by update, and watches the first ones.

    given, law, momentum   as in `choose_rate`
    watched                so many updates are watched; 0: none
    """

    given: float | None
    law: RateLaw | None
    momentum: float
    watched: int

    def choice(self, images: int, damping: Damping) -> RateChoice:
        """The rate of an update on so many images, and why."""
        chosen = choose_rate(self.given, self.law, self.momentum, images)
        if damping.factor == 1.0:
            return chosen
        why = f"{chosen.reason}, damped: the first updates changed predictions more than expected"
        return RateChoice(chosen.rate * damping.factor, why)

    def watches(self, damping: Damping) -> bool:
        """Whether the next update is to be followed by `watch`."""
        expects = self.given is None and self.law is not None and bool(self.law.divergence)
        return expects and len(damping.ratios) < self.watched

    def watch(self, damping: Damping, divergence: float, images: int) -> Damping:
        """After an update that changed the predictions of its own images so much, in nats per image.

        After the last watched update the rate is damped if the median of observed over expected divergence exceeds
        `TOLERANCE`: by the root of that ratio, since divergence grows with the square of the rate.
        """
        assert self.law is not None
        ratio = divergence / self.law.expected_divergence(images)
        ratios = (*damping.ratios, ratio if math.isfinite(ratio) else math.inf)
        if len(ratios) < self.watched:
            return replace(damping, ratios=ratios)
        median = sorted(ratios)[len(ratios) // 2]
        factor = max(median**-0.5, 1e-3) if median > TOLERANCE else 1.0
        return Damping(factor, ratios)
