"""ResNet-8 of MLPerf Tiny (Banbury et al. 2021): the image classification network of the microcontroller benchmark.

Trained in TensorFlow: SAME padding, BatchNorm epsilon 1e-3, biases in every convolution, shortcuts without BatchNorm,
and input 0..255, which is a normalisation with std 1/255 here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edgetta.models.layers import Conv2dSame, global_mean, initialise, scaled
from edgetta.models.normalise import Normalise

EPSILON = 1e-3
# The published weights number convolutions c.0 to c.8 and BatchNorms b.0 to b.6 in their order of use.
CONVOLUTIONS = (
    *("conv1", "layer1.conv1", "layer1.conv2"),
    *("layer2.conv1", "layer2.conv2", "layer2.shortcut"),
    *("layer3.conv1", "layer3.conv2", "layer3.shortcut"),
)
NORMS = ("bn1", "layer1.bn1", "layer1.bn2", "layer2.bn1", "layer2.bn2", "layer3.bn1", "layer3.bn2")


class ResNet8(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, num_classes) logits: a stem and three blocks of 16, 32 and 64 channels.

    `width` multiplies every channel count.
    """

    def __init__(self, *, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (scaled(c, width) for c in (16, 32, 64))
        self.normalise = Normalise()
        self.conv1 = Conv2dSame(3, first, 3)
        self.bn1 = nn.BatchNorm2d(first, eps=EPSILON)
        self.relu = nn.ReLU()
        self.layer1 = _Block(first, first, 1)
        self.layer2 = _Block(first, second, 2)
        self.layer3 = _Block(second, third, 2)
        self.fc = nn.Linear(third, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(self.normalise(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(global_mean(x))


def network_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names in the network's: `c.4.weight` -> `layer2.conv2.weight`. Other names stay as they are."""
    named = {f"c.{index}.": f"{name}." for index, name in enumerate(CONVOLUTIONS)}
    named |= {f"b.{index}.": f"{name}." for index, name in enumerate(NORMS)}
    return {named.get(name[:4], name[:4]) + name[4:]: value for name, value in tensors.items()}


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2dSame(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.conv2 = Conv2dSame(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Conv2dSame(inputs, outputs, 1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))
