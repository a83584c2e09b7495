"""ROID (Marsden, Döbler and Yang, WACV 2024): certain and diverse samples, consistency, ensembling, prior correction.

Section numbers are the paper's; settings and details are those of the authors' code
(github.com/mariodoebler/test-time-adaptation). The consistency term sees each image moved by up to four pixels,
mirrored and with other colours, by its own draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.baselines.affine import AffineMethod
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from edgetta.memory.meter import stock_saved_bytes
from edgetta.offline.augment import Augmentation, augment

COLOURS = Augmentation(
    jitter=1.0, brightness=0.4, contrast=0.3, saturation=0.5, hue=0.06, blur=0.0, grey=0.0, flip=0.5
)
SHIFT = 4  # pixels
CLIP, SMALLEST = 0.99, 1e-5  # of the soft likelihood ratio


@dataclass(frozen=True)
class RoidConfig:
    """Settings for CIFAR-10: Adam at 1e-3 (at batch 200). For ImageNet: SGD at 2.5e-4, momentum 0.9."""

    learning_rate: float = 1e-3
    momentum: float = 0.9  # Adam's first beta
    source_momentum: float = 0.99  # share of the adapted weights after each step; the rest is the source's
    probability_momentum: float = 0.9  # of the average prediction
    temperature: float = 1 / 3  # of the weights
    consistency: bool = True
    prior_correction: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.source_momentum <= 1 and 0 <= self.probability_momentum < 1 and self.temperature > 0):
            raise UsageError("ROID's momenta lie between 0 and 1, and its temperature is above 0")


class Roid(AffineMethod):
    """Predicts and adapts BatchNorm's weight and bias, with the batch's own statistics.

    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(self, model: nn.Module, config: RoidConfig | None = None, seed: int = 0) -> None:
        self.config = config or RoidConfig()
        super().__init__(model)
        self._source = [parameter.detach().clone() for parameter in self.parameters()]
        self._seed = seed
        self.average: Tensor | None = None  # of predictions
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        self.objective(images, logits).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._ensemble()
        logits = logits.detach()
        return prior_corrected(logits) if self.config.prior_correction else logits

    @torch.enable_grad()
    def objective(self, images: Tensor, logits: Tensor) -> Tensor:
        """Weighted soft likelihood ratio, and consistency with another view; moves the average prediction."""
        weights = self._weights(logits.detach())
        chosen = weights > 0
        loss = (soft_likelihood_ratio(logits) * weights)[chosen].sum()
        if self.config.consistency and bool(chosen.any()):
            other = self.forward(other_view(images[chosen], self._generator))
            loss = loss + (symmetric_cross_entropy(other, logits[chosen]) * weights[chosen]).sum()
        return loss / len(images)

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""
        average = self.average
        try:
            return stock_saved_bytes(lambda: self.objective(images, self.forward(images)), self.model.parameters())
        finally:
            self.average = average

    def reset(self) -> None:
        """Back to the network that was given, with a fresh optimizer and no average prediction."""
        self.model.load_state_dict(self._start)
        self.average = None
        self.optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate, (self.config.momentum, 0.999))
        self._generator = torch.Generator().manual_seed(self._seed)

    def _weights(self, logits: Tensor) -> Tensor:
        """Certainty and diversity weights; 0 for samples that are like the average prediction."""
        probabilities = logits.softmax(1)
        average = torch.full_like(probabilities[0], 1 / logits.shape[1]) if self.average is None else self.average
        diversity = _unit_range(1 - F.cosine_similarity(average[None], probabilities, dim=1))
        certainty = _unit_range(-entropy(logits))
        weights = torch.exp(diversity * certainty / self.config.temperature)
        share = self.config.probability_momentum
        self.average = share * average + (1 - share) * probabilities.mean(0)
        return weights.masked_fill(diversity < diversity.mean(), 0.0)

    @torch.no_grad()
    def _ensemble(self) -> None:
        """Weights move a little back to the source's."""
        for parameter, source in zip(self.parameters(), self._source, strict=True):
            parameter.lerp_(source, 1 - self.config.source_momentum)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """-sum p log(p / (1 - p)) per sample, (N,): its gradient does not vanish for certain samples as entropy's does."""
    probabilities = logits.softmax(1).clamp(0, CLIP)
    return -(probabilities * torch.log(probabilities / (1 - probabilities) + SMALLEST)).sum(1)


def symmetric_cross_entropy(a: Tensor, b: Tensor) -> Tensor:
    """The mean of both cross-entropies between two predictions as logits (N, classes): (N,)"""
    return -0.5 * (b.softmax(1) * a.log_softmax(1) + a.softmax(1) * b.log_softmax(1)).sum(1)


def prior_corrected(logits: Tensor) -> Tensor:
    """Logits (N, classes) scaled by the smoothed mean prediction of the batch."""
    count, classes = logits.shape
    prior = logits.softmax(1).mean(0)
    smoothing = max(1 / count, 1 / classes) / prior.max()
    return logits * ((prior + smoothing) / (1 + smoothing * classes))


def other_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with other colours, mirrored or not, and moved."""
    out = augment(images, COLOURS, generator)
    shifts = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=generator).tolist()
    padded = F.pad(out, (SHIFT, SHIFT, SHIFT, SHIFT), mode="reflect")
    height, width = images.shape[2:]
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, shifts, strict=True)])


def _unit_range(values: Tensor) -> Tensor:
    """Moved and scaled to [0, 1]; zeros where all are equal."""
    low = values.min()
    return (values - low) / (values.max() - low).clamp_min(1e-12)
