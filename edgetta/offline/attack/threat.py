"""What an attacker may change: a ball around each image, inside the range of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgetta.errors import UsageError

Norm = Literal["linf", "l2"]
_TINY = 1e-12


@dataclass(frozen=True)
class Threat:
    """All images within `epsilon` of the original in a norm, every pixel still in [0, 1].

    Raises:
        UsageError: another norm, or an epsilon that is not a positive number.
    """

    norm: Norm = "linf"
    epsilon: float = 8 / 255  # of pixels in [0, 1]

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise UsageError(f"norm {self.norm!r} is unknown; choose linf or l2")
        if not math.isfinite(self.epsilon) or self.epsilon <= 0:
            raise UsageError(f"epsilon {self.epsilon} is no size of an attack; give a positive number such as 8/255")

    def project(self, points: Tensor, centres: Tensor) -> Tensor:
        """The points [N, ...] brought back into the balls around `centres`, then into [0, 1]."""
        offset = points - centres
        if self.norm == "linf":
            offset = offset.clamp(-self.epsilon, self.epsilon)
        else:
            offset = offset * (self.epsilon / _lengths(offset).clamp_min(_TINY)).clamp_max(1)
        return (centres + offset).clamp(0, 1)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The direction of steepest ascent, of length one in the norm: signs, or the unit gradient of each image."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _lengths(gradient).clamp_min(_TINY)

    def random_start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Points drawn uniformly from the balls around images [N, ...], inside [0, 1].

        Drawn on the CPU, so that a seed means the same on every device.
        """
        if self.norm == "linf":
            noise = torch.rand(images.shape, generator=generator, dtype=images.dtype) * 2 - 1
        else:
            noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
            share = torch.rand(len(images), generator=generator, dtype=images.dtype) ** (1 / images[0].numel())
            noise = noise / _lengths(noise).clamp_min(_TINY) * share.view(-1, *[1] * (noise.dim() - 1))
        return self.project(images + self.epsilon * noise.to(images.device), images)

    def surface_start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Points on the surface of the balls, where APGD begins: at least one pixel, or the length, at `epsilon`."""
        if self.norm == "linf":
            noise = torch.rand(images.shape, generator=generator, dtype=images.dtype) * 2 - 1
            noise = noise / noise.flatten(1).abs().amax(1).clamp_min(_TINY).view(-1, *[1] * (noise.dim() - 1))
        else:
            noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
            noise = noise / _lengths(noise).clamp_min(_TINY)
        return self.project(images + self.epsilon * noise.to(images.device), images)

    def __str__(self) -> str:
        of_255 = self.epsilon * 255
        size = f"{of_255:.4g}/255" if self.norm == "linf" and abs(of_255 - round(of_255, 2)) < 1e-6 else None
        return f"{self.norm} {size or format(self.epsilon, '.4g')}"


def _lengths(vectors: Tensor) -> Tensor:
    """Euclidean length of each entry of a batch, shaped so that it divides the batch."""
    return vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.dim() - 1))
