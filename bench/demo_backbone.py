"""The demo's backbone: a small ResNet, trained on the spot on the digits of the training forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.models import Model, load_model

Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss


@dataclass(frozen=True)
class TrainingConfig:
    """SGD with one cycle of the learning rate; images are moved by up to `shift` pixels, and nothing else."""

    model: str = "resnet20"
    width: float = 0.5  # of the published channel counts
    epochs: int = 12
    batch: int = 64
    learning_rate: float = 0.1  # the highest of the cycle
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 3  # pixels
    seed: int = 0


def train_backbone(images: Tensor, labels: Tensor, config: TrainingConfig, progress: Progress | None = None) -> Model:
    """A classifier for images (N, 3, H, W) in [0, 1], trained with labels (N,); in evaluation mode.

    Raises `UsageError` where there are fewer images than a batch.
    """
    if len(images) < config.batch:
        raise UsageError(f"training needs at least one batch of {config.batch} images, got {len(images)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = load_model(config.model, width=config.width)
    network = model.module.train()
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )
    per_epoch = len(images) // config.batch
    steps = config.epochs * per_epoch
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        order = torch.randperm(len(images), generator=generator)
        for i in range(per_epoch):
            chosen = order[i * config.batch : (i + 1) * config.batch]
            loss = F.cross_entropy(network(shifted(images[chosen], config.shift, generator)), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cycle.step()
            if progress is not None:
                progress(epoch * per_epoch + i + 1, steps, float(loss.detach()))
    network.eval().requires_grad_(False)
    return model


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) moved by up to `pixels` along both axes, each by its own draw; black comes in."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4)
    places = torch.randint(0, 2 * pixels + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(places)])


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)
