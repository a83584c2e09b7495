"""The unadapted network, with the BatchNorm statistics of its training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Source:
    """Predicts with a frozen copy of `model`; nothing ever changes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def reset(self) -> None:
        """There is nothing to forget."""
