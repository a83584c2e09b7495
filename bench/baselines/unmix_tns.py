"""UnMix-TNS (Tomar et al., ICLR 2024): statistics of several components, so that one class in view moves few of them.

Every BatchNorm holds K means and variances. An image joins them by how alike its own mean is to theirs, normalises
with the moments of their mixture, and moves the components that it resembles. Nothing is learnt by gradients. Section
numbers are the paper's, settings those of the authors' code (github.com/devavratTomar/unmixtns).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.bench.baselines.batch_norm_statistics import batch_norms, moments
from edgetta.errors import UsageError

SPREAD = 0.5  # alpha: share of the source's variance that lies between the components at the start (section 3.2)
TEMPERATURE = 0.07  # of the assignment of an image to components


@dataclass(frozen=True)
class UnmixTnsConfig:
    """The published settings: 16 components; a momentum of 0.1 at batch 64, less for smaller batches."""

    components: int = 16  # K; the paper has 128 where domains are mixed
    momentum: float = 0.1
    batch: int = 64  # at which the momentum holds

    def __post_init__(self) -> None:
        if self.components < 2 or not 0 < self.momentum < 1 or self.batch < 1:
            raise UsageError("UnMix-TNS has at least 2 components, a momentum in (0, 1) and a batch of at least 1")

    def momentum_at(self, batch: int) -> float:
        """As much per image as at the batch that it was chosen for, and never more."""
        return 1 - (1 - self.momentum) ** (min(batch, self.batch) / self.batch)


class UnmixTns:
    """Predicts with the mixture's statistics. Raises `UsageError` for a model without BatchNorm."""

    def __init__(self, model: nn.Module, config: UnmixTnsConfig | None = None, seed: int = 0) -> None:
        self.config = config or UnmixTnsConfig()
        self._given = copy.deepcopy(model).eval().requires_grad_(False)
        batch_norms(self._given)
        self._seed = seed
        self.reset()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        for norm in self._norms:
            norm.momentum = self.config.momentum_at(len(images))
        logits: Tensor = self.model(images)
        return logits

    def reset(self) -> None:
        """Components as they are drawn around the source's statistics."""
        self.model = copy.deepcopy(self._given)
        generator = torch.Generator().manual_seed(self._seed)
        self._norms = []
        for name, module in list(self.model.named_modules()):
            if isinstance(module, _BatchNorm):
                parent = self.model.get_submodule(name.rpartition(".")[0])
                self._norms.append(UnmixedNorm(module, self.config.components, generator))
                setattr(parent, name.rpartition(".")[2], self._norms[-1])


class UnmixedNorm(nn.Module):
    """BatchNorm with the statistics of components, each image its own mixture."""

    def __init__(self, norm: _BatchNorm, components: int, generator: torch.Generator) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.momentum, self.eps = 0.0, norm.eps
        mean, variance = norm.running_mean, norm.running_var
        drawn = torch.randn(components, len(mean), generator=generator)
        self.means = mean + math.sqrt(SPREAD * components / (components - 1)) * variance.sqrt() * drawn  # (K, C)
        self.variances = (1 - SPREAD) * variance.repeat(components, 1)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        own_mean, own_variance = moments(x, (2, 3))  # (N, C)
        alike = F.normalize(own_mean, dim=1) @ F.normalize(self.means, dim=1).T
        share = (alike / TEMPERATURE).softmax(1)[:, :, None]  # (N, K, 1)
        from_mean, from_variance = own_mean[:, None] - self.means, own_variance[:, None] - self.variances  # (N, K, C)
        means, variances = self.means + share * from_mean, self.variances + share * from_variance
        mean = means.mean(1)
        variance = variances.mean(1) + means.square().mean(1) - mean.square()
        self.means = self.means + self.momentum * (share * from_mean).mean(0)
        self.variances = self.variances + self.momentum * (share * from_variance).mean(0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, :, None, None] + (self.bias - mean * scale)[:, :, None, None]
