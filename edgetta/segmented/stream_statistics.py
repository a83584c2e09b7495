"""How much each batch counts in the running statistics: an average over all images since the stream last changed.

The statistics of one batch are noisy, and their noise costs accuracy; an average over many batches has little of it,
but lags behind when another corruption begins. So batches are averaged as long as they are alike, and a change begins
a new average. What a change is, the statistics tell themselves: those of a batch depart from the average by several
times what is usual in this stream. Batches too small for that are compared by signals of the images.

Where classes come in runs, an average over few classes is not that of the shift: predictions tell, and more of the
source's statistics is then blended in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgetta.segmented.blend import SHARES

LEAST = 16
"""Fewer images are too few for statistics of their own: a first batch is averaged with what was there before, as if

that were the rest of so many, and changes are seen in signals of the images.
"""
DEVIATIONS, NOISE = 1.0, 2.0
"""By how many deviations from image to image the mean of a signal moves where the stream changed, and by how many

standard errors more, for images that are alike differ by chance.
"""
FOLLOWS = 0.15
"""How fast the usual departure follows those of batches that were no change."""
STILL = 0.002
"""The least departure that counts as usual, a tenth of that of photographs: frames of a still camera are all one."""
COMPARED = 256
"""Images after a change whose predictions choose the source's share in the blend."""
FEW = 32
"""Predictions of fewer images than this do not yet speak for a share of the source."""
SURER = 0.05
"""Share of the mean entropy by which predictions must be surer for more of the source: sure is not yet right."""
SEEN = 64
"""Images over which it is counted how often an image is predicted as the one before it."""
RUNS = 0.2
"""So much more often than by chance: classes come in runs."""
RUNS_SHARE = 0.75
"""The source's share then, at least: statistics of such images are those of their classes, too."""

_NOT_COMPARED = torch.zeros(len(SHARES) - 1, 2, dtype=torch.float64)
_NO_CLASSES = torch.zeros(0)


@dataclass(frozen=True)
class Domain:
    """What the images since the last change look like; never written in place."""

    count: int  # images averaged, at most the limit
    mean: Tensor  # (S,) of the signals
    variance: Tensor  # (S,) from image to image
    recent: Tensor  # (R, S) signals of the latest images, fewer than `LEAST`, not yet compared
    usual: float = 0.0  # departure of batches that were no change; 0 before the first
    source: float = 0.0  # share of the source's statistics in the blend
    compared: int = 0  # images since the change whose predictions chose it
    entropies: Tensor = _NOT_COMPARED  # (shares - 1, 2) their sums with a share and the next larger one
    classes: Tensor = _NO_CLASSES  # (C,) shares of the classes predicted
    latest: int = -1  # class predicted for the latest image; -1 before the first
    seen: int = 0  # images that were predicted, at most the limit
    alike: float = 0.0  # share of the latest of them that were predicted as the one before


_NUMBERS = ("count", "usual", "source", "compared", "latest", "seen", "alike")
_TENSORS = ("mean", "variance", "recent", "entropies", "classes")  # the last two always on the CPU


class StreamStatistics:
    """Gives each batch its share in the running statistics.

    Args:
        limit: images that an average reaches back, at most; a slow drift is followed at this pace.
        change: so many times the usual departure is a change. `inf`: nothing is.
    """

    def __init__(self, limit: int = 512, change: float = 4.0) -> None:
        self.limit, self.change = limit, change
        self.domain: Domain | None = None
        self.changes = 0

    def share(self, images: Tensor, signals_tell: bool = False) -> float:
        """The share, above 0 and at most 1, of images (N, C, H, W) in [0, 1], N at least 1; takes them in.

        signals_tell   look for a change in signals of the images, as for fewer than `LEAST`
        """
        signals = image_signals(images)
        count = len(signals)
        if self.domain is None:
            self.domain = Domain(0, *_moments(signals), signals[:0])
        elif self.domain.mean.device != signals.device:  # restored from a file
            moved = {name: getattr(self.domain, name).to(signals.device) for name in _TENSORS[:3]}
            self.domain = replace(self.domain, **moved)
        recent = torch.cat([self.domain.recent, signals])
        if len(recent) >= LEAST:
            if (signals_tell or count < LEAST) and self._unlike(recent):
                self._restart(recent, len(recent) - count)
            recent = recent[:0]
        before = min(self.domain.count, self.limit)
        self._join(signals, before)
        self.domain = replace(self.domain, recent=recent)
        return count / max(before + count, LEAST)

    def departs(
        self,
        images: Tensor,
        share: float,
        before: Iterable[Mapping[str, Tensor]],
        after: Iterable[Mapping[str, Tensor]],
    ) -> bool:
        """Whether the statistics of these images, the latest that were taken in, depart from the average: a change.

        They then begin a new average, and must be normalised anew, with a share of 1.

        share           that they had
        before, after   running statistics (`*.running_mean`, `*.running_var`) without and with them
        """
        domain, count = self.domain, len(images)
        if domain is None or count < LEAST or share >= 1:
            return False
        departure = _departure(before, after, share)
        if departure is None:
            return False
        departure /= 1 / count + 1 / (count / share - count)  # what chance alone makes of it is then always the same
        if domain.usual and departure > self.change * max(domain.usual, STILL) and math.isfinite(self.change):
            self._restart(image_signals(images), count)
            return True
        if math.isfinite(departure):
            usual = domain.usual or departure
            self.domain = replace(domain, usual=usual + FOLLOWS * (departure - usual))
        return False

    @property
    def source(self) -> float:
        """The source's share in the running statistics as they are."""
        return 0.0 if self.domain is None else self.domain.source

    def blend(self, source: float) -> None:
        """The running statistics have this share of the source from now on."""
        assert self.domain is not None
        self.domain = replace(self.domain, source=source)

    @property
    def compares(self) -> bool:
        """Whether so few images came since the change that the source's share is still being chosen."""
        return self.domain is not None and self.domain.compared < COMPARED

    def choose_source(self, entropies: Callable[[float], Tensor]) -> float:
        """The share of the source that suits the images since the change, those of this batch among them.

        The smallest whose next larger one does not make predictions surer by `SURER`.

        entropies   (N,) of this batch's predictions with that share
        """
        assert self.domain is not None
        sums, chosen = self.domain.entropies.clone(), 0
        here = entropies(SHARES[0])
        compared = self.domain.compared + len(here)
        while chosen + 1 < len(SHARES):
            further = entropies(SHARES[chosen + 1])
            sums[chosen] += torch.stack([here.sum(), further.sum()]).to(sums)
            before, after = sums[chosen].tolist()
            if compared < FEW or not after < (1 - SURER) * before:
                break
            chosen, here = chosen + 1, further
        self.domain = replace(self.domain, compared=compared, entropies=sums)
        return SHARES[chosen]

    def saw(self, logits: Tensor) -> None:
        """Take in predictions (N, C) in the order of the stream."""
        domain = self.domain
        if domain is None:
            return
        predicted = logits.argmax(1).cpu()
        count, before = len(predicted), domain.seen
        shares = torch.bincount(predicted, minlength=logits.shape[1]).float() / count
        found = predicted if domain.latest < 0 else torch.cat([predicted.new_tensor([domain.latest]), predicted])
        same = float((found[1:] == found[:-1]).float().mean()) if len(found) > 1 else domain.alike
        self.domain = replace(
            domain,
            classes=shares
            if not before
            else torch.lerp(domain.classes, shares, count / min(before + count, self.limit)),
            latest=int(predicted[-1]),
            seen=min(before + count, self.limit),
            alike=domain.alike + min(1.0, count / min(before + count, SEEN)) * (same - domain.alike),
        )

    @property
    def in_runs(self) -> bool:
        """Whether classes come in runs, as far as predictions tell: images are predicted as the one before them more

        often than shares of the classes explain.
        """
        domain = self.domain
        if domain is None or domain.seen < FEW:
            return False
        return domain.alike > float(domain.classes.square().sum()) + RUNS

    @property
    def settled(self) -> bool:
        """Whether the stream has not changed for so many images that the average reaches back as far as it may."""
        return self.domain is not None and self.domain.count >= self.limit

    def tensors(self) -> dict[str, Tensor]:
        """The average so far, by name; nothing before the first batch."""
        if self.domain is None:
            return {}
        domain = self.domain
        numbers = torch.tensor([getattr(domain, name) for name in _NUMBERS], dtype=torch.float64)
        return {name: getattr(self.domain, name) for name in _TENSORS} | {"numbers": numbers}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue where `tensors` were taken. Raises `ValueError` where they are of another kind."""
        if not tensors:
            self.domain = None
            return
        if set(tensors) != {"numbers", *_TENSORS} or tensors["numbers"].shape != (len(_NUMBERS),):
            raise ValueError("the statistics of the stream are not whole")
        held: dict[str, Any] = {name: tensors[name].clone() for name in _TENSORS}
        mean = held["mean"]
        fits = mean.dim() == 1 and held["variance"].shape == mean.shape and held["recent"].shape[1:] == mean.shape
        if not fits or held["entropies"].shape != _NOT_COMPARED.shape or held["classes"].dim() != 1:
            raise ValueError("the statistics of the stream have other shapes than these")
        numbers: dict[str, Any] = dict(zip(_NUMBERS, tensors["numbers"].tolist(), strict=True))
        if not 0 <= numbers["source"] < 1:
            raise ValueError(f"the statistics of the stream hold a share of {numbers['source']}")
        counts = {name: int(numbers[name]) for name in ("count", "compared", "latest", "seen")}
        self.domain = Domain(**held, **{**numbers, **counts})

    def _unlike(self, signals: Tensor) -> bool:
        """Whether these images (R, S) are unlike those of the domain. What is not finite is like anything."""
        domain = self.domain
        assert domain is not None
        if domain.count < LEAST or not math.isfinite(self.change):
            return False
        mean, variance = _moments(signals)
        deviation = (0.5 * (variance + domain.variance)).sqrt().clamp_min(1e-6)
        distance = float(((mean - domain.mean).abs() / deviation).max())
        return distance > DEVIATIONS + NOISE * math.sqrt(1 / len(signals) + 1 / domain.count)

    def _restart(self, signals: Tensor, count: int) -> None:
        """A new average begins, of `count` images that look like this (R, S)."""
        self.changes += 1
        assert self.domain is not None
        mean, variance = _moments(signals)
        self.domain = replace(
            self.domain,
            count=count,
            mean=mean,
            variance=variance,
            recent=signals[:0],
            compared=0,
            entropies=_NOT_COMPARED,
        )

    def _join(self, signals: Tensor, before: int) -> None:
        """Average the signals (N, S) with those of `before` images."""
        domain = self.domain
        assert domain is not None
        share = len(signals) / (before + len(signals))
        mean = signals.mean(0)
        spread = (signals - mean).square().mean(0)
        between = (mean - domain.mean).square() * (share * (1 - share))
        variance = torch.lerp(domain.variance, spread, share) + between
        mean = torch.lerp(domain.mean, mean, share)
        self.domain = replace(domain, count=before + len(signals), mean=mean, variance=variance)


def _departure(
    before: Iterable[Mapping[str, Tensor]], after: Iterable[Mapping[str, Tensor]], share: float
) -> float | None:
    """How far the means of a batch lie from the running ones, squared, in variances; None where there are none."""
    distances = [
        ((now[name] - mean) / share).square() / (was[name.replace("running_mean", "running_var")] + 1e-5)
        for was, now in zip(before, after, strict=True)
        for name, mean in was.items()
        if name.endswith("running_mean")
    ]
    return float(torch.stack([distance.mean() for distance in distances]).mean()) if distances else None


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
