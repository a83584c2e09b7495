"""The worst point found so far for each image, over steps and restarts."""

from __future__ import annotations

import torch
from torch import Tensor


class WorstCase:
    """For each image the point that fools the model, or else the one of highest loss; at first the image itself.

    Args:
        images: (N, C, H, W), the originals.
    """

    def __init__(self, images: Tensor) -> None:
        self.points = images.detach().clone()
        self.loss = torch.full((len(images),), -torch.inf, dtype=images.dtype, device=images.device)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)

    def standing(self) -> Tensor:
        """Numbers of the images that no point has fooled the model about."""
        return (~self.fooled).nonzero()[:, 0]

    def see(self, points: Tensor, logits: Tensor, labels: Tensor, loss: Tensor, rows: Tensor) -> None:
        """Take note of points [M, ...] of the images numbered `rows` [M], with what the model said to them."""
        fooled = logits.argmax(1) != labels
        held, worst = self.fooled[rows], self.loss[rows]
        better = (fooled & ~held) | ((fooled == held) & (loss > worst))
        chosen = rows[better]
        self.points[chosen] = points[better]
        self.loss[chosen] = loss[better]
        self.fooled[chosen] = fooled[better]
