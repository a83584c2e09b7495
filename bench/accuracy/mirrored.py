"""A baseline that predicts the mean of an image's and its mirror image's prediction, as edgetta's option `mirrored`.

So that the gain of the second view is not taken for one of adaptation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgetta.bench.baselines import Tent


class MirroredTent(Tent):
    """TENT that learns as ever, and predicts with both views before each update."""

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            other: Tensor = self.model(images.flip(3))
        logits = super().__call__(images)
        return torch.logaddexp(logits.log_softmax(1), other.log_softmax(1)).sub_(math.log(2))
