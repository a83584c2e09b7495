"""VGG-16 with BatchNorm for 32x32 images (Simonyan and Zisserman 2015), by the names of kuangliu and RiFT, or of SWA.

The convolutions are called the same in both; RiFT ends in one linear layer, SWA in three.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgetta.models.layers import initialise, scaled
from edgetta.models.normalise import Normalise

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """(N, 3, 32, 32) in [0, 1] -> (N, num_classes) logits. `width` multiplies every channel count.

    `hidden` inserts SWA's two hidden layers, with dropout, before the last one.
    """

    def __init__(self, *, hidden: bool = False, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            for plane in (scaled(c, width) for c in stage):
                layers += [nn.Conv2d(channels, plane, 3, padding=1), nn.BatchNorm2d(plane), nn.ReLU()]
                channels = plane
            layers.append(nn.MaxPool2d(2))
        self.normalise = Normalise()
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Linear(channels, num_classes)
        if hidden:
            self.classifier = nn.Sequential(
                *(nn.Dropout(), nn.Linear(channels, channels), nn.ReLU()),
                *(nn.Dropout(), nn.Linear(channels, channels), nn.ReLU()),
                nn.Linear(channels, num_classes),
            )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(self.normalise(x)).flatten(1))


def block_names() -> tuple[tuple[str, ...], ...]:
    """The module that ends each convolution block, by stage: its ReLU, or the pooling that follows.

    The first block of all is the stem and not listed.
    """
    stages, position = [], 0
    for stage in STAGES:
        ends = [position + 3 * (index + 1) - 1 for index in range(len(stage))]
        position += 3 * len(stage) + 1
        ends[-1] = position - 1
        stages.append(tuple(f"features.{end}" for end in ends))
    return (stages[0][1:], *stages[1:])
