"""Small networks that together use every operator that edgetta differentiates, with the modules where they are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.models import load_model
from edgetta.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class Small:
    """How to build a network, what it takes, and where it is cut (stem's end, then each part's end)."""

    build: Callable[[], nn.Module]
    cuts: tuple[str, ...]
    input_shape: tuple[int, int, int] = (3, 16, 16)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Network(nn.Module):
    """Stem, body, mean over the positions, classifier. The body is cut by the names of its modules."""

    def __init__(self, stem: nn.Module, channels: int, **body: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.body = nn.Sequential()
        for name, module in body.items():
            self.body.add_module(name, module)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        return self.head(x.mean((2, 3)) if x.dim() == 4 else x[:, 0])


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        wide = 2 * inputs
        self.expand = nn.Sequential(*conv_bn(inputs, wide, 1), activation())
        self.depthwise = nn.Sequential(*conv_bn(wide, wide, 3, stride, wide), activation())
        self.project = conv_bn(wide, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class SqueezeExcite(nn.Module):
    """Convolution, SiLU and a gate per channel."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.conv = conv_bn(channels, channels)
        self.activation = nn.SiLU()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.conv(x))
        gate = self.gate(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(y, 1)))))
        return x + y * gate


class Branches(nn.Module):
    """Inception's way: branches side by side, one of them pooled, one dilated, one with an even kernel."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(inputs, 6, 3, padding=2, dilation=2)
        self.even = nn.Conv2d(inputs, 4, 4, padding="same")
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.bn = nn.BatchNorm2d(10 + inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.wide(x), self.even(x), self.pool(x)], 1)))


class Tokens(nn.Module):
    """Patches, a class token and learned positions: images to (N, T, C)."""

    def __init__(self, channels: int, patches: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, channels, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, channels))
        self.position = nn.Parameter(torch.randn(1, patches + 1, channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position)


class Attention(nn.Module):
    """A transformer block: LayerNorm, heads, LayerNorm, two linear layers with GELU."""

    def __init__(self, channels: int, heads: int, approximate: str = "none") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 24), nn.GELU(approximate), nn.Linear(24, channels))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (
            self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.proj(mixed)
        return x + self.mlp(self.norm2(x))


class Normed(nn.Module):
    """ConvNeXt's block (depthwise, LayerNorm over channels, GELU, layer scale), then GroupNorm and tanh."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.groups = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return torch.tanh(self.groups(x + y.permute(0, 3, 1, 2)))


class Odds(nn.Module):
    """What is rare: leaky ReLU, erf, divisions, exp, sums, a strided slice, a chunk, transposed products."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 1.0)
        self.conv = nn.Conv2d(channels, channels, 3, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.leaky_relu(x, 0.1).chunk(2, 1)
        total = (torch.exp(a * 0.1) + 1.0).sum((2, 3), keepdim=True)
        y = torch.cat([torch.erf(b), a / total, 1.0 / (2.0 + b * b)], 1)
        y = y[:, : x.shape[1], 1:, ::3] - self.scale
        energy = torch.matmul(y.flatten(2).transpose(1, 2), y.flatten(2))
        y = y + torch.matmul(y.flatten(2), energy.softmax(-1)).reshape(y.shape) / self.scale
        return self.conv(F.pad(y, (1, 2, 0, 1), value=0.5))


def mobile() -> nn.Module:
    return Network(
        nn.Sequential(*conv_bn(3, 8, 3, 2), nn.ReLU6()),
        12,
        a=InvertedResidual(8, 8, 1, nn.ReLU6),
        b=InvertedResidual(8, 12, 2, nn.ReLU6),
        c=InvertedResidual(12, 12, 1, nn.Hardswish),
    )


def gates() -> nn.Module:
    blocks = {"a": SqueezeExcite(8, nn.Sigmoid()), "b": SqueezeExcite(8, nn.Hardsigmoid()), "c": Branches(8)}
    return Network(conv_bn(3, 8), 18, **blocks)


def vgg() -> nn.Module:
    return Network(
        nn.Sequential(*conv_bn(3, 8), nn.ReLU()),
        12,
        a=nn.Sequential(*conv_bn(8, 8), nn.ReLU(), nn.MaxPool2d(2, 2)),
        b=nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(True)),
        c=nn.Sequential(nn.Conv2d(12, 12, 3, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        d=nn.Sequential(nn.Conv2d(12, 12, 1, 2), nn.ReLU(), nn.MaxPool2d(2, 2), nn.AdaptiveAvgPool2d(1)),
    )


def grouped() -> nn.Module:
    return Network(
        conv_bn(3, 8),
        12,
        a=nn.Sequential(*conv_bn(8, 8, groups=2), nn.ReLU(), *conv_bn(8, 12, 5, 2, groups=4), nn.ReLU()),
        b=nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 1, 2, bias=False), nn.ReLU6()),
        c=nn.Sequential(nn.Conv2d(12, 12, (3, 1), (2, 1), (1, 0)), nn.Sigmoid(), nn.AvgPool2d(2, 1, 1)),
    )


def transformer() -> nn.Module:
    blocks = {"a": Attention(12, 2), "b": nn.Sequential(Attention(12, 3), Attention(12, 2, "tanh"))}
    return Network(Tokens(12, 16), 12, **blocks)


SMALL: dict[str, Small] = {
    "wide_resnet": Small(
        lambda: WideResNet(10, 1, width=0.5), ("conv1", "block1.layer.0", "block2.layer.0", "block3.layer.0")
    ),
    "resnet20": Small(
        lambda: load_model("resnet20", width=0.5).module, ("relu", "layer1.0", "layer1.2", "layer2.2", "layer3.2")
    ),
    "vgg": Small(vgg, ("stem", "body.a", "body.b", "body.c", "body.d"), (3, 18, 22)),
    "grouped": Small(grouped, ("stem", "body.a", "body.b", "body.c")),
    "mobile": Small(mobile, ("stem", "body.a", "body.b", "body.c")),
    "gates": Small(gates, ("stem", "body.a", "body.b", "body.c")),
    "transformer": Small(transformer, ("stem", "body.a", "body.b")),
    "convnext": Small(
        lambda: Network(nn.Conv2d(3, 8, 2, 2), 8, a=Normed(8), b=Normed(8)), ("stem", "body.a", "body.b")
    ),
    "odds": Small(lambda: Network(nn.Conv2d(3, 8, 3), 8, a=Odds(8)), ("stem", "body.a")),
}
SMOOTH = ("grouped", "mobile", "gates", "transformer", "convnext", "odds")
"""Those with an activation whose derivative is kept rounded to eight bits."""
