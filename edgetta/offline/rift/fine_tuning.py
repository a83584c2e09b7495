"""Fine-tune some weights of an adversarially trained model on clean data, the rest as it was; and BatchNorm alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.errors import UsageError
from edgetta.offline.attack import classified_right
from edgetta.offline.pixels import as_floats
from edgetta.offline.training import Batch, Epoch, Progress, Schedule, train

FINE_TUNING = Schedule(epochs=10, learning_rate=1e-3, decay_at=(5,))
"""Section 3.3 of RiFT: 10 epochs of SGD, momentum 0.9, rate 0.001, a tenth of it after half."""


def fine_tuning(epochs: int, seed: int = 0, **changes: object) -> Schedule:
    """The published schedule with another number of epochs: the rate falls after half of them."""
    return replace(FINE_TUNING, epochs=epochs, decay_at=(max(1, epochs // 2),), seed=seed, **changes)  # type: ignore[arg-type]


def fine_tune(
    model: nn.Module,
    parameters: tuple[str, ...] | None,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    schedule: Schedule = FINE_TUNING,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train the named weights of `model` in place on clean images; it ends with the epoch of the best clean accuracy.

    Every module stays in evaluation mode: BatchNorm statistics do not move. (The released code lets those of all
    layers follow the clean images, so that its gain is not that of the fine-tuned module alone; `recalibrate` does
    that, and nothing else.)

    Args:
        parameters: names; None for all weights and biases.
        data, validation: images and labels; the epoch is chosen on the latter.
        schedule: of SGD.
        checkpoint, progress: see `train`.

    Raises:
        As `train`.
    """
    return train(
        model,
        data,
        validation,
        _clean_loss,
        classified_right,
        schedule,
        parameters=parameters,
        frozen_statistics=True,
        checkpoint=checkpoint,
        progress=progress,
    )


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch: int = 250) -> None:
    """Replace the statistics of every BatchNorm by those of clean images, in place; no weight moves.

    All layers see the statistics of their batch while the averages are taken; each image counts once.

    Args:
        images: (N, C, H, W), in random order, uint8 or floats in [0, 1].
        batch: images at a time.

    Raises:
        UsageError: the model has no BatchNorm with running statistics.
    """
    layers = batch_norms(model)
    if not layers:
        raise UsageError("the model has no BatchNorm whose statistics could be taken anew")
    device = next(model.parameters()).device
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    seen = 0
    try:
        model.eval()
        for layer in layers:
            layer.training = True
        for some in images.split(batch):
            if len(some) < 2 and seen:
                break
            seen += len(some)
            for layer in layers:
                layer.momentum = len(some) / seen
            model(as_floats(some).to(device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def _clean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.images).float(), batch.labels)
