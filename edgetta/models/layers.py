"""Small pieces that several networks share: scaled widths, 3x3 convolutions, and the first weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1. Networks pass every channel count through here."""
    return max(1, round(channels * width))


def conv3x3(inputs: int, outputs: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the height and width at stride 1 and halves them at stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: output size ceil(input / stride), the odd pixel right and below.

    At stride 1 that is symmetric padding; at stride 2 on an even size it is not, and weights trained one way are wrong
    the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        above, below = _same(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = _same(x.shape[3], self.kernel_size[1], self.stride[1])
        if above == below and left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, (above, left), self.dilation, self.groups)
        return super().forward(F.pad(x, (left, right, above, below)))


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, outputs: int, count: int, stride: int
) -> list[nn.Module]:
    """`count` blocks, the first from `inputs` channels at `stride`, the rest from `outputs` at stride 1.

    `block(inputs, outputs, stride)` builds one block.
    """
    return [block(inputs if index == 0 else outputs, outputs, stride if index == 0 else 1) for index in range(count)]


def residual_stages(
    block: Callable[[int, int, int], nn.Module], expansion: int, counts: Sequence[int], planes: Sequence[int]
) -> tuple[list[nn.Sequential], int]:
    """Stages of `counts` blocks, each but the first halving height and width; and the channels of the last one.

    `block(inputs, planes, stride)` builds one block, which gives `expansion` times its planes.
    """
    channels, stages = planes[0], []
    for index, (count, plane) in enumerate(zip(counts, planes, strict=True)):
        outputs = plane * expansion
        inputs = [channels, *[outputs] * (count - 1)]
        strides = [2 if index else 1, *[1] * (count - 1)]
        stages.append(nn.Sequential(*(block(i, plane, s) for i, s in zip(inputs, strides, strict=True))))
        channels = outputs
    return stages, channels


def global_mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C): the mean over height and width."""
    return x.mean(dim=(2, 3))


def initialise(network: nn.Module) -> None:
    """He initialisation (fan out) for convolutions, identity BatchNorm, zero biases: the networks' own recipe."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
