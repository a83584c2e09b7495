"""Small classifiers and images with known adversarial points, which the tests of attacks, training and RiFT share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

torch.set_num_threads(1)  # the networks here are too small to share among threads


def images(count: int = 40, classes: int = 4, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy pictures (N, 3, size, size) in [0, 1] with a bright corner per class: easy to learn and to attack."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, size, size, generator=generator) * 0.6 + 0.2
    y = torch.arange(count) % classes
    half = size // 2
    for number in range(classes):
        row, column = divmod(number, 2)
        x[y == number, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.25
    return x.clamp(0, 1), y


def network(classes: int = 4, seed: int = 0, width: int = 6) -> nn.Sequential:
    """Two convolutions with BatchNorm and a classifier, in evaluation mode, with statistics that are not trivial."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 16, classes),
    )
    for layer in (net[1], net[4]):
        layer.running_mean.uniform_(-0.2, 0.2)
        layer.running_var.uniform_(0.5, 1.5)
    return net.eval()


def trained(net: nn.Module, steps: int = 60, rate: float = 0.05) -> nn.Module:
    """The same network after a few steps on `images()`, BatchNorm statistics as they were."""
    x, y = images(400, seed=5)
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for parameter in net.parameters():
        parameter.grad = None
    return net


class Linear(nn.Module):
    """Logits that are linear in the pixels, so that the worst point of a ball is known."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (classes, C * H * W)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias
