"""Six drawn shapes and a small residual network that tells them apart after seconds of training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPES = ("disc", "ring", "square", "triangle", "cross", "bars")
SIZE = 24


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 24, 24, 3) and labels int64 (count,): place, size, colours and noise are drawn."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.resize(np.arange(len(SHAPES)), count))
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    images = []
    for label in labels:
        radius = rng.uniform(5, 9)
        dy, dx = (grid - rng.uniform(radius, SIZE - 1 - radius) for grid in (y, x))
        far, square = np.hypot(dy, dx), np.maximum(abs(dy), abs(dx))
        inside = (
            far < radius,
            (far < radius) & (far > 0.55 * radius),
            square < 0.85 * radius,
            (dy < 0.7 * radius) & (dy > 2 * abs(dx) - radius),
            (square < radius) & (np.minimum(abs(dy), abs(dx)) < 0.3 * radius),
            (square < radius) & (np.floor(dy / 2.5) % 2 == 0),
        )[label]
        front, back = rng.uniform(0.55, 0.95, 3), rng.uniform(0.05, 0.4, 3)
        image = np.where(inside[..., None], front, back) + rng.normal(0, 0.04, (SIZE, SIZE, 3))
        images.append((255 * image.clip(0, 1)).astype(np.uint8))
    return np.stack(images), labels.astype(np.int64)


class Block(nn.Module):
    """Two convolutions beside a shortcut, as torchvision's ResNets have them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ShapeNet(nn.Module):
    """(N, 3, 24, 24) in [0, 1] -> (N, 6)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.layer1, self.layer2, self.layer3 = Block(12, 12, 2), Block(12, 24, 2), Block(24, 48, 2)
        self.fc = nn.Linear(48, len(SHAPES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def build() -> nn.Module:
    """The network as `edgetta export` asks for it."""
    return ShapeNet()


def trained(images: np.ndarray, labels: np.ndarray, epochs: int = 6, seed: int = 0) -> ShapeNet:
    """The network after training, in evaluation mode."""
    torch.manual_seed(seed)
    network = ShapeNet()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    y = torch.from_numpy(labels)
    steps = epochs * (len(x) // 60)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 60 * 60].split(60):
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return network.eval()
