"""How much each batch counts in the running statistics: an average over all images since the stream last changed.

The statistics of one batch are noisy, and their noise costs accuracy; an average over many batches has little of it,
but lags behind when another corruption begins. So images are averaged as long as they look alike, and a change begins
a new average. What a change is, a test on signals of the images themselves tells: cheap, the same for every engine,
and blind to what the network makes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LEAST = 16
"""A first batch of fewer images is averaged with what was there before, as if that were the rest of so many."""
NOISE = 2.0
"""Images that are alike differ by chance: by so many standard errors more than `change` before it counts."""


@dataclass(frozen=True)
class Domain:
    """What the images since the last change look like; never written in place."""

    count: int  # images averaged, at most the limit
    mean: Tensor  # (S,) of the signals
    variance: Tensor  # (S,) from image to image
    recent: Tensor  # (R, S) signals of the latest images, fewer than `LEAST`, not yet compared


_TENSORS = ("mean", "variance", "recent")


class StreamStatistics:
    """Gives each batch its share in the running statistics.

    Args:
        limit: images that an average reaches back, at most; a slow drift is followed at this pace.
        change: how far, in standard deviations from image to image, the mean of any signal moves where the stream
            changed. `inf`: never.
    """

    def __init__(self, limit: int = 512, change: float = 1.0) -> None:
        self.limit, self.change = limit, change
        self.domain: Domain | None = None
        self.changes = 0

    def share(self, images: Tensor) -> float:
        """The share, above 0 and at most 1, of images (N, C, H, W) in [0, 1], N at least 1; takes them in."""
        signals = image_signals(images)
        count = len(signals)
        if self.domain is None:
            self.domain = Domain(0, *_moments(signals), signals[:0])
        elif self.domain.mean.device != signals.device:  # restored from a file
            moved = {name: getattr(self.domain, name).to(signals.device) for name in _TENSORS}
            self.domain = Domain(self.domain.count, **moved)
        recent = torch.cat([self.domain.recent, signals])
        if len(recent) >= LEAST:
            if self._changed(recent):
                self.changes += 1
                self.domain = Domain(len(recent) - count, *_moments(recent), recent[:0])
            recent = recent[:0]
        before = min(self.domain.count, self.limit)
        self._join(signals, before)
        self.domain = replace(self.domain, recent=recent)
        return count / max(before + count, LEAST)

    @property
    def settled(self) -> bool:
        """Whether the stream has not changed for so many images that the average reaches back as far as it may."""
        return self.domain is not None and self.domain.count >= self.limit

    def tensors(self) -> dict[str, Tensor]:
        """The average so far, by name; nothing before the first batch."""
        if self.domain is None:
            return {}
        count = torch.tensor(self.domain.count)
        return {name: getattr(self.domain, name) for name in _TENSORS} | {"count": count}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue where `tensors` were taken. Raises `ValueError` where they are of another kind."""
        if not tensors:
            self.domain = None
            return
        if set(tensors) != {"count", *_TENSORS} or not len(tensors["mean"]) == len(tensors["variance"]):
            raise ValueError("the statistics of the stream are not whole")
        mean, variance, recent = (tensors[name].clone() for name in _TENSORS)
        if mean.dim() != 1 or recent.shape[1:] != mean.shape:
            raise ValueError("the statistics of the stream have other shapes than these")
        self.domain = Domain(int(tensors["count"]), mean, variance, recent)

    def _changed(self, signals: Tensor) -> bool:
        """Whether these images (R, S) are unlike those of the domain. Not finite is not a change."""
        domain = self.domain
        assert domain is not None
        if domain.count < LEAST:
            return False
        mean, variance = _moments(signals)
        deviation = (0.5 * (variance + domain.variance)).sqrt().clamp_min(1e-6)
        distance = float(((mean - domain.mean).abs() / deviation).max())
        return distance > self.change + NOISE * math.sqrt(1 / len(signals) + 1 / domain.count)

    def _join(self, signals: Tensor, before: int) -> None:
        """Average the signals (N, S) with those of `before` images."""
        domain = self.domain
        assert domain is not None
        share = len(signals) / (before + len(signals))
        mean = signals.mean(0)
        spread = (signals - mean).square().mean(0)
        between = (mean - domain.mean).square() * (share * (1 - share))
        variance = torch.lerp(domain.variance, spread, share) + between
        self.domain = Domain(before + len(signals), torch.lerp(domain.mean, mean, share), variance, domain.recent)


def image_signals(images: Tensor) -> Tensor:
    """What an image looks like, (N, 2 * C + 2): per channel its mean and the logarithm of its deviation; of its

    middle channel, the logarithms of the steps from pixel to pixel and of what stands out from its neighbours. Noise,
    blur, light and contrast each move one.
    """
    x = images.float()
    pixels = x.flatten(2)
    mean = pixels.mean(2)
    deviation = (pixels.square().mean(2) - mean.square()).clamp_min_(1e-8).sqrt_()
    if min(x.shape[2:]) < 3:  # there are no neighbours
        return torch.cat([mean, deviation.log()], 1)
    one = x[:, x.shape[1] // 2]
    left, middle = one[:, 1:-1, :-2], one[:, 1:-1, 1:-1]
    around = left + one[:, 1:-1, 2:] + one[:, :-2, 1:-1] + one[:, 2:, 1:-1]
    steps, outstanding = (middle - left).abs_(), (around - 4 * middle).abs_()
    local = torch.stack([steps.mean((1, 2)), outstanding.mean((1, 2))], 1).clamp_min_(1e-4)
    return torch.cat([mean, deviation.log(), local.log()], 1)


def _moments(signals: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (S,) of signals (N, S)."""
    mean = signals.mean(0)
    return mean, (signals - mean).square().mean(0)
