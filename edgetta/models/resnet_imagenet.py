"""ImageNet ResNet-18/34/50 with a 7x7 stem and max-pool (He et al. 2016), by torchvision's names.

The bottleneck strides in its 3x3 convolution, as torchvision's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from edgetta.models.layers import conv3x3, global_mean, initialise, residual_stages, scaled
from edgetta.models.normalise import Normalise


class ResNetImageNet(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, num_classes) logits. Four stages of `counts` blocks.

    `bottleneck` chooses the 1x1-3x3-1x1 block of ResNet-50. `width` multiplies every channel count.
    """

    def __init__(
        self, counts: Sequence[int], bottleneck: bool, *, num_classes: int = 1000, width: float = 1.0
    ) -> None:
        super().__init__()
        block = _Bottleneck if bottleneck else _BasicBlock
        planes = [scaled(c, width) for c in (64, 128, 256, 512)]
        self.normalise = Normalise()
        self.conv1 = nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = residual_stages(block, block.expansion, counts, planes)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(self.normalise(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(global_mean(x))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class _BasicBlock(nn.Module):
    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, plane: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, plane, stride)
        self.bn1 = nn.BatchNorm2d(plane)
        self.conv2 = conv3x3(plane, plane)
        self.bn2 = nn.BatchNorm2d(plane)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, plane, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class _Bottleneck(nn.Module):
    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, plane: int, stride: int) -> None:
        super().__init__()
        outputs = plane * self.expansion
        self.conv1 = nn.Conv2d(inputs, plane, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(plane)
        self.conv2 = conv3x3(plane, plane, stride)
        self.bn2 = nn.BatchNorm2d(plane)
        self.conv3 = nn.Conv2d(plane, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + shortcut)
