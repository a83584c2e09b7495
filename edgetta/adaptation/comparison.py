"""The shipped network beside the adapted one: whether they agree, and which of them is surer.

Statistics that follow a stream can be wrong: where one class alone is in view under a shift, what is in view is partly
taken for the shift. Predictions tell: the network whose predictions are surer on the same images was the better one in
nearly every case measured, and where the shipped one is surer, it is the one that predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.objective import entropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

REACH = 128
"""Images that the comparison reaches back."""
LEAST = 32
"""Fewer images compared say nothing."""
SURER = 0.99
"""Of the adapted network's entropy: what differs by less is the same."""


@dataclass(frozen=True)
class Comparison:
    """Means over the latest images that both networks predicted."""

    images: int = 0  # compared, at most `REACH`
    agree: float = 0.0  # share of them that both predict alike
    shipped: float = 0.0  # entropy of the shipped network's predictions, in nats
    adapted: float = 0.0  # entropy of the adapted network's
    held: bool = False  # the shipped network predicts
    times: int = 0  # that it began to

    def joined(self, shipped: Array, adapted: Array, may_hold: bool = True) -> Comparison:
        """With the logits (N, classes) of both networks on further images.

        may_hold   whether the shipped network may be the one that predicts
        """
        finite = np.isfinite(shipped).all(1) & np.isfinite(adapted).all(1)
        count = int(finite.sum())
        if not count:
            return self
        images = min(self.images, REACH) + count
        share = count / images
        alike = float((shipped[finite].argmax(1) == adapted[finite].argmax(1)).mean())
        means = (alike, float(entropy(shipped[finite]).mean()), float(entropy(adapted[finite]).mean()))
        agree, of_shipped, of_adapted = (
            before + share * (now - before)
            for before, now in zip((self.agree, self.shipped, self.adapted), means, strict=True)
        )
        held = may_hold and (self.held if images < LEAST else of_shipped < SURER * of_adapted)
        begun = self.times + (held and not self.held)
        return Comparison(min(images, REACH), agree, of_shipped, of_adapted, held, begun)

    def begun_anew(self) -> Comparison:
        """After a change of the stream nothing was compared yet, and the adapted network predicts."""
        return replace(Comparison(), times=self.times)

    def array(self) -> Array:
        """For a state file."""
        return np.array(
            [self.images, self.agree, self.shipped, self.adapted, float(self.held), self.times], np.float64
        )

    @staticmethod
    def of(array: Array) -> Comparison:
        """What `array` gave."""
        images, agree, shipped, adapted, held, times = array.tolist()
        return Comparison(int(images), agree, shipped, adapted, bool(held), int(times))
