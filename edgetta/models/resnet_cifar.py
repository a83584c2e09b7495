"""The CIFAR ResNets of He et al. 2016, section 4.2 (ResNet-20/32/44/56/110), by akamaster's names.

Three stages of 16, 32 and 64 channels, shortcut option A: no weights, every second pixel, zero channels on both sides.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models.layers import conv3x3, global_mean, initialise, scaled, stage
from edgetta.models.normalise import Normalise


class ResNetCifar(nn.Module):
    """ResNet-`depth` with depth 6n + 2: (N, 3, H, W) in [0, 1] -> (N, num_classes) logits.

    `width` multiplies every channel count.
    """

    def __init__(self, depth: int, *, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UsageError(f"a CIFAR ResNet of He et al. has depth 6n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
        count = (depth - 2) // 6
        first, second, third = (scaled(c, width) for c in (16, 32, 64))
        self.normalise = Normalise()
        self.conv1 = conv3x3(3, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*stage(_Block, first, first, count, 1))
        self.layer2 = nn.Sequential(*stage(_Block, first, second, count, 2))
        self.layer3 = nn.Sequential(*stage(_Block, second, third, count, 2))
        self.linear = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(global_mean(x))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _OptionA(inputs, outputs, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class _OptionA(nn.Module):
    """Every `stride`-th pixel, the new channels zero, half of them before and half after the old ones."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))
