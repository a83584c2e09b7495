"""Test-time BatchNorm statistics: each batch is normalised with its own mean and variance.

Schneider et al. 2020 ("Improving robustness against common corruptions by covariate shift adaptation") and Nado et al.
2020, with no weight on the source statistics. TENT starts from the same network.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.errors import UsageError


class BatchNormStatistics:
    """Predicts with a frozen copy of `model` whose BatchNorms use the statistics of the current batch.

    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = with_batch_statistics(model).requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def reset(self) -> None:
        """There is nothing to forget: every batch stands alone."""


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose BatchNorms have no running statistics and so use the batch's."""
    copied = copy.deepcopy(model).eval()
    for norm in batch_norms(copied):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return copied


def moments(x: Tensor, axes: tuple[int, ...], keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the axes, several times as fast as `torch.var_mean` on a processor."""
    mean = x.mean(axes, keepdim=keepdim)
    return mean, (x.square().mean(axes, keepdim=keepdim) - mean.square()).clamp_min(0)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm of `model`. Raises `UsageError` where there is none."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no BatchNorm, which this method adapts; compare with Source instead"
        )
    return found
