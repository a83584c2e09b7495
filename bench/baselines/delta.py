"""DELTA (Zhao, Chen and Xia, ICLR 2023): renormalised batches, and rare classes weigh more.

Test-time batch renormalisation (section 3.2): a batch is normalised with an average over the batches so far, while
gradients run through its own statistics. Dynamic online reweighting (section 3.3): a sample counts by the inverse of
how often its class was predicted. On top of entropy weighted by certainty, as in the paper's `Ent-W + DELTA`. Settings
are the authors' (github.com/bwbwzhao/DELTA).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.bench.baselines.affine import AffineMethod
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from edgetta.memory.meter import stock_saved_bytes


@dataclass(frozen=True)
class DeltaConfig:
    """Settings for CIFAR-size networks: Adam at 1e-3 (at batch 200). For ImageNet: SGD at 2.5e-4, momentum 0.9."""

    learning_rate: float = 1e-3
    momentum: float = 0.9  # Adam's first beta
    statistics: float = 0.95  # alpha: share of the average in the next one
    frequencies: float = 0.95  # lambda: the same of the classes' frequencies
    margin: float = 0.5  # of ln(classes): samples of larger entropy do not count

    def __post_init__(self) -> None:
        if not (0 <= self.statistics < 1 and 0 <= self.frequencies < 1 and self.margin > 0):
            raise UsageError("DELTA's averages keep a share in [0, 1), and its entropy margin is above 0")


class Delta(AffineMethod):
    """Predicts and adapts BatchNorm's weight and bias, with statistics averaged over the stream.

    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(self, model: nn.Module, config: DeltaConfig | None = None) -> None:
        self.config = config or DeltaConfig()
        super().__init__(model)
        self.model = _renormalised(self.model, self.config.statistics)
        self._fresh = copy.deepcopy(self.model)
        self.frequencies: Tensor | None = None  # (classes,)
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        loss = self.objective(logits)
        if loss is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()

    @torch.enable_grad()
    def objective(self, logits: Tensor) -> Tensor | None:
        """Weighted entropy, None where no sample is certain enough; moves the frequencies."""
        probabilities = logits.detach().softmax(1)
        classes = logits.shape[1]
        if self.frequencies is None:
            self.frequencies = torch.full((classes,), 1 / classes)
        entropies = entropy(logits)
        certainty = torch.exp(self.config.margin * math.log(classes) - entropies.detach())
        rarity = 1 / self.frequencies[probabilities.argmax(1)]
        weights = certainty * rarity / rarity.mean()
        share = self.config.frequencies
        self.frequencies = share * self.frequencies + (1 - share) * probabilities.mean(0)
        counted = certainty > 1
        return (entropies * weights)[counted].mean() if bool(counted.any()) else None

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""
        model = copy.deepcopy(self.model)
        return stock_saved_bytes(lambda: entropy(model(images)).mean(), model.parameters())

    def reset(self) -> None:
        """Back to the network that was given: no averages, no frequencies, a fresh optimizer."""
        self.model = copy.deepcopy(self._fresh)
        self.frequencies = None
        self.optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate, (self.config.momentum, 0.999))


class RenormalisedNorm(nn.Module):
    """Normalises with the average of batches' means and deviations; the first batch starts it (equations 2, 3)."""

    def __init__(self, norm: _BatchNorm, share: float) -> None:
        super().__init__()
        self.share, self.eps = share, norm.eps
        self.mean: Tensor | None = None
        self.deviation: Tensor | None = None
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        normalised, batch_mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, self.eps)
        now_mean, now_deviation = batch_mean.detach(), 1 / inverse.detach()
        mean = now_mean if self.mean is None else self.mean
        deviation = now_deviation if self.deviation is None else self.deviation
        factor, shift = now_deviation / deviation, (now_mean - mean) / deviation  # r and d
        self.mean = torch.lerp(now_mean, mean, self.share)
        self.deviation = torch.lerp(now_deviation, deviation, self.share)
        scale, offset = factor * self.weight, shift * self.weight + self.bias
        return normalised * scale[:, None, None] + offset[:, None, None]


def _renormalised(model: nn.Module, share: float) -> nn.Module:
    """The model with a `RenormalisedNorm` in place of every BatchNorm, which keeps its weight and bias."""
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], RenormalisedNorm(module, share))
    return model
