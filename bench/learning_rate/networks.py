"""Networks of the papers' kinds, narrow enough for two cores, trained for a few epochs and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgetta.bench.demo_backbone import TrainingConfig, as_tensor, train_backbone
from edgetta.models import load_model
from edgetta.offline.curvature import DataOperator, HessianOperator, LossSurface
from edgetta.sources.datasets import cifar10_jpeg
from edgetta.storage import atomic_write_bytes

TRAINING_IMAGES = 10_000
DATA = "CIFAR-10 (JPEG-75 copy), 10,000 of the training images"


@dataclass(frozen=True)
class Narrow:
    """A published network at a share of its width."""

    model: str
    width: float
    epochs: int = 4
    learning_rate: float = 0.1

    @property
    def name(self) -> str:
        return f"{self.model} x {self.width:g}"


VGG = Narrow("vgg16_bn", 0.125, learning_rate=0.05)
WRN = Narrow("wrn28_10", 0.05)
PRERESNET = Narrow("preresnet20", 0.5)
NETWORKS = (VGG, WRN, PRERESNET)


def images(count: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """`count` training images (N, 3, 32, 32) in [0, 1] and labels, the first from `first` on in an order drawn."""
    rows = np.random.default_rng(seed).permutation(50_000)[first : first + count]
    data = cifar10_jpeg("train", rows)
    return as_tensor(data.images), torch.from_numpy(data.labels)


def trained(of: Narrow, folder: Path, progress: Callable[[int, int, float], None] | None = None) -> nn.Module:
    """The network after its epochs on `TRAINING_IMAGES` images, from the folder where an earlier run left it."""
    path = folder / f"{of.model}-{of.width:g}-{of.epochs}.safetensors"
    if path.is_file():
        module = load_model(of.model, width=of.width).module
        module.load_state_dict(load_file(path))
        return module.eval().requires_grad_(True)
    config = TrainingConfig(of.model, of.width, of.epochs, 64, of.learning_rate, shift=2)
    module = train_backbone(*images(TRAINING_IMAGES, 0), config, progress).module
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    return module.eval().requires_grad_(True)


def settled(of: Narrow, folder: Path, samples: int, epochs: int = 24, rate: float = 2e-3) -> nn.Module:
    """The trained network, brought near a minimum of the very loss that `surface_operator` studies.

    Theories of stable rates speak of steps around a minimum. A network fresh from training is not at one of this loss,
    for its BatchNorms now have constant statistics. SGD with momentum, batches of 64, the rate falling to 0.
    """
    path = folder / f"{of.model}-{of.width:g}-{of.epochs}-settled-{samples}-{epochs}.safetensors"
    module = trained(of, folder)
    if path.is_file():
        module.load_state_dict(load_file(path))
        return module
    x, y = images(samples, 0)
    optimizer = torch.optim.SGD(module.parameters(), rate, 0.9)
    steps = epochs * (samples // 64)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(samples, (64,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
        optimizer.step()
        fall.step()
    atomic_write_bytes(path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))
    return module


def surface_operator(
    module: nn.Module, samples: int, kind: type[DataOperator] = HessianOperator, **options: Any
) -> DataOperator:
    """Cross-entropy on `samples` of the images that the network was trained on, BatchNorm with stored statistics."""
    surface = LossSurface(module, nn.functional.cross_entropy)
    return kind(surface, images(samples, 0), batch_size=128, **options)
