"""What an attack ascends: a loss of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.errors import EdgettaError, UsageError

Classifier = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to logits (N, classes): a module, or any function of torch."""

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, classes) and targets (N, ...) to the loss of each image (N,)."""

LossName = Literal["ce", "dlr"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """DLR loss of each image (N,) (Croce and Hein 2020, equation 6): does not change with the scale of the logits.

    Raises:
        UsageError: fewer than 3 classes, for which it is not defined.
    """
    if logits.shape[1] < 3:
        raise UsageError(f"the DLR loss needs 3 classes, the model has {logits.shape[1]}; use cross-entropy (ce)")
    ordered = logits.topk(3, dim=1)
    first, second, third = ordered.values.unbind(1)
    own = logits.gather(1, labels[:, None])[:, 0]
    rival = torch.where(ordered.indices[:, 0] == labels, second, first)
    return (rival - own) / (first - third + 1e-12)


LOSSES: dict[str, SampleLoss] = {"ce": cross_entropy, "dlr": difference_of_logits_ratio}


def gradient_at(model: Classifier, points: Tensor, targets: Tensor, loss: SampleLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the loss of each image, and its gradient by the points; all detached.

    Raises:
        EdgettaError: a gradient that is not finite, or that does not reach the input.
    """
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(points)
        values = loss(logits, targets)
        if not values.requires_grad:
            raise EdgettaError(
                "the model's output does not depend on its input by operations that torch can differentiate; "
                "give a torch model, not an exported engine"
            )
        (gradient,) = torch.autograd.grad(values.sum(), points)
    if not bool(torch.isfinite(gradient).all()):
        raise EdgettaError(
            "the gradient by the image is NaN or infinite; check the weights and the normalisation, or lower the "
            "learning rate of a training"
        )
    return logits.detach(), values.detach(), gradient
