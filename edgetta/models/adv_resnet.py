"""The adversarially trained ResNet-2B and ResNet-4B of the verification literature: no BatchNorm, biases everywhere.

Trained with PGD at eps 2/255 on CIFAR-10 (Zhang et al., alpha-beta-CROWN). Small enough for robustness to be measured,
not estimated, on one core.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models.layers import conv3x3, initialise, scaled, stage
from edgetta.models.normalise import Normalise

# blocks -> channels of the stem, channels of the blocks, stages
LAYOUTS = {2: (8, 16, 1), 4: (16, 32, 2)}


class AdvResNet(nn.Module):
    """ResNet-`blocks`B, blocks 2 or 4: (N, 3, 32, 32) in [0, 1] -> (N, num_classes) logits.

    `width` multiplies every channel count and the hidden layer's 100 units.
    """

    def __init__(self, blocks: int, *, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        if blocks not in LAYOUTS:
            raise UsageError(f"an adversarial ResNet has 2 or 4 blocks, not {blocks}")
        stem, plane, stages = LAYOUTS[blocks]
        channels, plane, hidden = scaled(stem, width), scaled(plane, width), scaled(100, width)
        side = 32 // 2 ** (stages + 1)
        self.normalise = Normalise()
        self.conv1 = conv3x3(3, channels, 2, bias=True)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*stage(_Block, channels, plane, 2, 2))
        self.layer2 = nn.Sequential(*(stage(_Block, plane, plane, 2, 2) if stages == 2 else []))
        self.linear1 = nn.Linear(plane * side * side, hidden)
        self.relu1 = nn.ReLU()
        self.linear2 = nn.Linear(hidden, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(self.normalise(x)))
        x = self.layer2(self.layer1(x))
        return self.linear2(self.relu1(self.linear1(x.flatten(1))))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride, bias=True)
        self.conv2 = conv3x3(outputs, outputs, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))
