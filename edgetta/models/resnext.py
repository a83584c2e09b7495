"""ResNeXt-29 for 32x32 images (Xie et al. 2017, block C), by the names of AugMix: `Hendrycks2020AugMix_ResNeXt`."""

from __future__ import annotations

from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.models.layers import conv3x3, global_mean, initialise, scaled
from edgetta.models.normalise import Normalise

EXPANSION = 4


class ResNeXt(nn.Module):
    """ResNeXt-`depth` (9n + 2), `cardinality` x `base_width`d: (N, 3, H, W) in [0, 1] -> (N, num_classes) logits.

    `width` multiplies every channel count; the cardinality stays.
    """

    stage_1: nn.Sequential
    stage_2: nn.Sequential
    stage_3: nn.Sequential

    def __init__(
        self,
        depth: int = 29,
        cardinality: int = 4,
        base_width: int = 32,
        *,
        num_classes: int = 10,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise UsageError(f"a CIFAR ResNeXt has depth 9n + 2 (11, 20, 29, 38, 47), not {depth}")
        count = (depth - 2) // 9
        channels = scaled(64, width)
        self.normalise = Normalise()
        self.conv_1_3x3 = conv3x3(3, channels)
        self.bn_1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        for index, plane in enumerate((64, 128, 256)):
            grouped = scaled(plane * base_width // 64, width) * cardinality
            outputs = scaled(plane * EXPANSION, width)
            blocks = []
            for position in range(count):
                blocks.append(_Block(channels, grouped, outputs, cardinality, 2 if index and position == 0 else 1))
                channels = outputs
            self.add_module(f"stage_{index + 1}", nn.Sequential(*blocks))
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn_1(self.conv_1_3x3(self.normalise(x))))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(global_mean(x))


class _Block(nn.Module):
    def __init__(self, inputs: int, grouped: int, outputs: int, cardinality: int, stride: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(inputs, grouped, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(grouped)
        self.conv_conv = nn.Conv2d(grouped, grouped, 3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(grouped)
        self.conv_expand = nn.Conv2d(grouped, outputs, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn_reduce(self.conv_reduce(x)))
        out = self.relu(self.bn(self.conv_conv(out)))
        return self.relu(shortcut + self.bn_expand(self.conv_expand(out)))
