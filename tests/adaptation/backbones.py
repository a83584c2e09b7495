"""A small backbone for the tests, and its programs."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.engines.contract import ProgramSet
from edgetta.export.adaptable import AdaptableModel
from edgetta.export.derive import derive


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SmallNet(nn.Module):
    """Stem, three residual blocks, linear classifier; 16x16 images."""

    cuts = ("stem", "block1", "block2", "block3")

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.block1 = Block(6, 6, 1)
        self.block2 = Block(6, 8, 2)
        self.block3 = Block(8, 8, 1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block3(self.block2(self.block1(self.stem(x)))).mean((2, 3)))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with BatchNorms whose statistics and affine maps are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.dim() > 1 else 0.2)
        if parameter.dim() == 4:
            parameter.data /= (parameter.shape[1] * parameter.shape[2]) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data.add_(1.0)
    return model.eval()


@functools.cache
def small_programs(initialisation: str = "identity", adapt: str = "affine", form: str = "adaptive") -> ProgramSet:
    """Programs of the small network, its meta-networks away from their initialisation, as after warm-up."""
    programs = small_model(initialisation, adapt, form).programs
    rng = np.random.default_rng(3)
    moved = {
        name: array + (0.1 * rng.standard_normal(array.shape) if name.startswith("metas.") else 0)
        for name, array in programs.parameters.split(programs.shipped).items()
    }
    return replace(programs, shipped=programs.parameters.join(moved).astype(np.float32))


@functools.cache
def small_model(initialisation: str = "identity", adapt: str = "meta", form: str = "adaptive") -> AdaptableModel:
    return derive(
        randomised(SmallNet()),
        (3, 16, 16),
        SmallNet.cuts,
        batch_norm=form,  # type: ignore[arg-type]
        adapt=adapt,
        initialisation=initialisation,  # type: ignore[arg-type]
        kernel=3,
    )
