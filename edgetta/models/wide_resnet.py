"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis 2016), by the names of RobustBench and AugMix.

WRN-40-2 with `mean = std = 0.5` is RobustBench's `Hendrycks2020AugMix_WRN`, WRN-28-10 without normalisation its
`Standard`, WRN-34-10 the network of TRADES and RiFT. Checkpoints of the latter carry a `sub_block1` that no forward
ever runs; loading drops it.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models.layers import conv3x3, global_mean, initialise, scaled, stage
from edgetta.models.normalise import Normalise


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: (N, 3, H, W) in [0, 1] -> (N, num_classes) logits.

    `depth` is 6n + 4. `width` multiplies every channel count, the stem's included.
    """

    def __init__(self, depth: int, widen: int, *, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UsageError(f"a wide ResNet has depth 6n + 4 (10, 16, 22, 28, 34, 40), not {depth}")
        count = (depth - 4) // 6
        stem, first, second, third = (scaled(c, width) for c in (16, 16 * widen, 32 * widen, 64 * widen))
        self.normalise = Normalise()
        self.conv1 = conv3x3(3, stem)
        self.block1 = _Group(count, stem, first, 1)
        self.block2 = _Group(count, first, second, 2)
        self.block3 = _Group(count, second, third, 2)
        self.bn1 = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalise(x))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(global_mean(self.relu(self.bn1(x))))


class _Group(nn.Module):
    """One stage. It exists for the names `blockI.layer.J` of the published checkpoints."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*stage(_Block, inputs, outputs, count, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class _Block(nn.Module):
    """Pre-activation block. Where the channels change, the shortcut starts after the first BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = (
            None if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(activated))))
