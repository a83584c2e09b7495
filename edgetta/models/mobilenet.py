"""MobileNet V1 and V2 as TensorFlow trained them (Howard et al. 2017, Sandler et al. 2018): SAME padding, ReLU6.

The module names are this project's own: torchvision's MobileNetV2 pads differently, and its weights must not fit by
accident. Weights come folded, as convolution and bias per operation, with the activation statistics beside them;
`unfolded` puts back the BatchNorm that changes nothing on the source, so that its statistics can adapt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from edgetta.errors import EdgettaError
from edgetta.models.layers import Conv2dSame, global_mean, initialise
from edgetta.models.normalise import Normalise

EPSILON = 1e-3
# V1: output channels and stride of each separable block. V2: expansion, output channels, blocks, first stride.
V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV1(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, num_classes) logits; class 0 of the published 1001 is the background.

    `width` is the published depth multiplier (1.0, 0.75, 0.5).
    """

    def __init__(self, *, num_classes: int = 1001, width: float = 1.0) -> None:
        super().__init__()
        channels = max(8, int(32 * width))
        self.normalise = Normalise()
        self.stem = _ConvBN(3, channels, 3, stride=2)
        blocks = []
        for plane, stride in V1:
            outputs = max(8, int(plane * width))
            blocks.append(_Separable(channels, outputs, stride))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(global_mean(self.blocks(self.stem(self.normalise(x)))))


class MobileNetV2(nn.Module):
    """(N, 3, H, W) in [0, 1] -> (N, num_classes) logits; class 0 of the published 1001 is the background.

    `width` is the published depth multiplier; channels are rounded to multiples of 8, the last 1280 never shrink.
    """

    def __init__(self, *, num_classes: int = 1001, width: float = 1.0) -> None:
        super().__init__()
        channels = _divisible(32 * width)
        self.normalise = Normalise()
        self.stem = _ConvBN(3, channels, 3, stride=2)
        blocks = []
        for expansion, plane, count, stride in V2:
            outputs = _divisible(plane * width)
            for position in range(count):
                blocks.append(_Inverted(channels, outputs, expansion, stride if position == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        last = max(1280, _divisible(1280 * width))
        self.last = _ConvBN(channels, last, 1)
        self.classifier = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(global_mean(self.last(self.blocks(self.stem(self.normalise(x))))))


def unfolded(network: nn.Module, tensors: Mapping[str, Tensor], graph: Sequence[str]) -> dict[str, Tensor]:
    """Folded weights `wKK`, `bKK` with source statistics `src_meanKK`, `src_varKK` as the network's state dictionary.

    `graph` has one line per operation (`3 dw in=35 out=37 stride=2 act=relu6`); its convolutions must be those of the
    network in kind, stride and activation. BatchNorm gets the statistics of its own input and, as weight and bias,
    their root and mean: the identity, until the statistics are others. EdgettaError where graph and network differ.
    """
    wanted = [(name, module) for name, module in network.named_modules() if isinstance(module, _ConvBN)]
    lines = [_Line.parse(line) for line in graph if re.match(r"\d+ (conv|dw) ", line)]
    if [line.signature for line in lines] != [_signature(module) for _, module in wanted] + [("conv", 1, "none")]:
        raise EdgettaError(f"the file's graph of {len(lines)} convolutions is not that of {type(network).__name__}")
    adds = sum(" add " in line for line in graph)
    skips = sum(isinstance(module, _Inverted) and module.skip for module in network.modules())
    if adds != skips:
        raise EdgettaError(f"the file's graph has {adds} shortcuts, {type(network).__name__} has {skips}")
    state: dict[str, Tensor] = {}
    for (name, _), line in zip(wanted, lines, strict=False):
        weight, bias, mean, variance = (
            tensors[f"{kind}{line.index:02d}"] for kind in ("w", "b", "src_mean", "src_var")
        )
        state[f"{name}.conv.weight"] = weight
        state[f"{name}.bn.running_mean"] = mean - bias
        state[f"{name}.bn.running_var"] = variance
        state[f"{name}.bn.weight"] = (variance + EPSILON).sqrt()
        state[f"{name}.bn.bias"] = mean
    last = lines[-1].index
    state["classifier.weight"] = tensors[f"w{last:02d}"].flatten(1)
    state["classifier.bias"] = tensors[f"b{last:02d}"]
    return state


class _Line:
    """One convolution of the graph."""

    def __init__(self, index: int, kind: str, stride: int, activation: str) -> None:
        self.index = index
        self.signature = (kind, stride, activation)

    @classmethod
    def parse(cls, line: str) -> _Line:
        found = re.match(r"(\d+) (conv|dw) .*stride=(\d+) act=(\w+)", line)
        if not found:
            raise EdgettaError(f"the file's graph has a line that is no operation: {line!r}")
        return cls(int(found[1]), found[2], int(found[3]), found[4])


def _signature(module: _ConvBN) -> tuple[str, int, str]:
    kind = "dw" if module.conv.groups > 1 else "conv"
    return kind, module.conv.stride[0], "relu6" if isinstance(module.act, nn.ReLU6) else "none"


class _ConvBN(nn.Module):
    """Convolution, BatchNorm, and ReLU6 unless told otherwise."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = Conv2dSame(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.act: nn.Module = nn.ReLU6() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class _Separable(nn.Module):
    """V1: depthwise 3x3, then pointwise."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _ConvBN(inputs, inputs, 3, stride=stride, groups=inputs)
        self.pointwise = _ConvBN(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class _Inverted(nn.Module):
    """V2: expand, depthwise 3x3, project without activation; a shortcut where shape and stride allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else _ConvBN(inputs, hidden, 1)
        self.depthwise = _ConvBN(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = _ConvBN(hidden, outputs, 1, act=False)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.skip else out


def _divisible(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8, and not more than a tenth below (TensorFlow's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
