"""Pre-activation ResNets for 32x32 images (He et al. 2016, "Identity mappings"), by the names of the SWA code.

PreResNet-110 is the network of the curvature papers: depth 44 and above uses bottleneck blocks (9n + 2 layers), below
that basic blocks (6n + 2).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models.layers import conv3x3, global_mean, initialise, scaled
from edgetta.models.normalise import Normalise

BOTTLENECK_FROM = 44  # depth


def blocks_per_stage(depth: int) -> int:
    """Blocks in each of the three stages. Raises UsageError where the depth fits neither 6n + 2 nor 9n + 2."""
    per_block = 9 if depth >= BOTTLENECK_FROM else 6
    if depth < 8 or (depth - 2) % per_block:
        raise UsageError(f"PreResNet depth is 6n + 2 below {BOTTLENECK_FROM} and 9n + 2 from there on, not {depth}")
    return (depth - 2) // per_block


class PreResNet(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, num_classes) logits. `width` multiplies every channel count."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, *, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        block = _Bottleneck if depth >= BOTTLENECK_FROM else _BasicBlock
        count = blocks_per_stage(depth)
        planes = [scaled(c, width) for c in (16, 32, 64)]
        self.normalise = Normalise()
        self.conv1 = conv3x3(3, planes[0])
        channels = planes[0]
        for index, plane in enumerate(planes):
            blocks = []
            for position in range(count):
                blocks.append(block(channels, plane, 2 if index and position == 0 else 1))
                channels = plane * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalise(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(global_mean(self.relu(self.bn(x))))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))


class _BasicBlock(nn.Module):
    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, plane: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, plane, stride)
        self.bn2 = nn.BatchNorm2d(plane)
        self.conv2 = conv3x3(plane, plane)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, plane, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(out))) + shortcut


class _Bottleneck(nn.Module):
    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, plane: int, stride: int) -> None:
        super().__init__()
        outputs = plane * self.expansion
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, plane, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(plane)
        self.conv2 = conv3x3(plane, plane, stride)
        self.bn3 = nn.BatchNorm2d(plane)
        self.conv3 = nn.Conv2d(plane, outputs, 1, bias=False)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        return self.conv3(self.relu(self.bn3(out))) + shortcut
