"""The adaptation objective as a loss surface: over all that adapts, statistics that follow included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgetta.engines.contract import ProgramSet, Statistics
from edgetta.errors import UsageError
from edgetta.offline.curvature.surface import Loss, LossSurface
from edgetta.offline.differentiable import DifferentiableNetwork

Objective = Literal["entropy", "cross_entropy"]


def adaptation_surface(
    programs: ProgramSet,
    objective: Objective = "entropy",
    *,
    statistics: Statistics | None = None,
    moving: bool = True,
    regulariser: float = 0.0,
    margin: float | None = None,
    affine: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LossSurface:
    """The surface on which the device descends, over all parameters that adapt.

    Its samples are coupled by statistics and by the filter, so batches are never split. Where a BatchNorm's weight
    adapts, its statistics move with the weights before it (`DifferentiableNetwork`).

    Args:
        programs: of the network; the surface is at the parameters that ship.
        objective: "entropy" of the predictions (EcoTTA, equation 2), or "cross_entropy" with labels, as in warm-up.
        statistics: that BatchNorms normalise with, as on a device that averages over its stream; None: each batch's.
        moving: given statistics move with the weights, as those of a stream do; False: they are constants.
        regulariser: lambda, the weight of the sum of distances (equation 3).
        margin: only samples with entropy below margin * ln(classes) count; None: all.
        affine: False leaves out the biases and weights inside the frozen parts.
        device, dtype: of the computation.

    Raises:
        UsageError: an objective that does not exist.
    """
    if objective not in ("entropy", "cross_entropy"):
        raise UsageError(f"objective {objective!r} is unknown; choose entropy or cross_entropy")
    model = DifferentiableNetwork(programs, statistics, moving=moving, distances=regulariser > 0).to(device, dtype)
    chosen = "all" if affine else model.meta_parameters
    return LossSurface(model, _loss(objective, regulariser, margin), parameters=chosen, separable=False)


def _loss(objective: Objective, regulariser: float, margin: float | None) -> Loss:
    def loss(outputs: Sequence[Tensor], targets: Any) -> Tensor:
        logits, distances = outputs
        log_probabilities = logits.log_softmax(1)
        if objective == "cross_entropy":
            value = nn.functional.nll_loss(log_probabilities, targets)
        else:
            entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
            kept = torch.ones_like(entropies)
            if margin is not None:
                kept = (entropies.detach() < margin * math.log(logits.shape[1])).to(entropies.dtype)
            value = (entropies * kept).sum() / kept.sum().clamp_min(1)
        return value + regulariser * distances.sum()

    return loss
