"""NOTE (Gong et al., NeurIPS 2022): instance-aware normalisation and a memory that balances predicted classes.

An image's own moments replace those of the source only as far as they lie outside what chance explains, and
BatchNorm's statistics, weights and biases learn from a reservoir in which every predicted class has its place. Section
and equation numbers are the paper's, settings those of the authors' code (github.com/TaesikGong/NOTE). There the
network is trained with the instance-aware layer; here it takes the place of BatchNorm in a trained network.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.bench.baselines.batch_norm_statistics import batch_norms
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from edgetta.memory.meter import stock_saved_bytes


@dataclass(frozen=True)
class NoteConfig:
    """The published settings: Adam at 1e-4, an update per 64 images, a memory of 64."""

    learning_rate: float = 1e-4
    momentum: float = 0.9  # Adam's first beta
    statistics: float = 0.01  # how fast BatchNorm's statistics move on an update
    width: float = 4.0  # k: standard errors that an image's moments may be away, equation 4
    memory: int = 64  # images
    period: int = 64  # images from update to update

    def __post_init__(self) -> None:
        if not 0 < self.statistics <= 1 or self.memory < 1 or self.period < 1 or self.width < 0:
            raise UsageError("NOTE moves statistics by a share in (0, 1], remembers an image at least, and k is >= 0")


class Reservoir:
    """At most `capacity` images, balanced by predicted class, each class sampled evenly over time (algorithm 1)."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity = capacity
        self.by_class: dict[int, list[Tensor]] = {}
        self._seen: dict[int, int] = {}
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return sum(map(len, self.by_class.values()))

    def add(self, image: Tensor, label: int) -> None:
        """Take in an image in place of one of the largest class, or, if its own is the largest, by chance."""
        self._seen[label] = self._seen.get(label, 0) + 1
        mine = self.by_class.setdefault(label, [])
        if len(self) >= self.capacity:
            most = max(map(len, self.by_class.values()))
            if len(mine) < most:
                largest = [items for items in self.by_class.values() if len(items) == most]
                loser = self._random.choice(largest)
            elif self._random.random() <= len(mine) / self._seen[label]:
                loser = mine
            else:
                return
            loser.pop(self._random.randrange(len(loser)))
        mine.append(image.clone())

    def images(self) -> list[Tensor]:
        return [image for items in self.by_class.values() for image in items]


class Note:
    """Predicts image by image, whatever came with it; BatchNorm learns from the memory.

    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(self, model: nn.Module, config: NoteConfig | None = None, seed: int = 0) -> None:
        self.config = config or NoteConfig()
        self._given = copy.deepcopy(model).eval().requires_grad_(False)
        batch_norms(self._given)
        self._seed = seed
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(images)
        for image, label in zip(images, logits.argmax(1).tolist(), strict=True):
            self.memory.add(image, label)
            self._seen += 1
            if self._seen % self.config.period == 0:
                self._update(torch.stack(self.memory.images()))
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""
        model = copy.deepcopy(self.model).train()
        return stock_saved_bytes(lambda: entropy(model(images)).mean(), model.parameters())

    def reset(self) -> None:
        """Back to the network that was given, with an empty memory and a fresh optimizer."""
        self.model = _instance_aware(self._given, self.config)
        self.optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate, (self.config.momentum, 0.999))
        self.memory = Reservoir(self.config.memory, self._seed)
        self._seen = 0

    @torch.enable_grad()
    def _update(self, images: Tensor) -> None:
        """One step on the memory, whose statistics join those of BatchNorm (section 3.3)."""
        _learning(self.model, True)
        entropy(self.model(images)).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _learning(self.model, False)


class InstanceAwareNorm(nn.Module):
    """BatchNorm that moves its statistics towards an image's own, by what chance does not explain (equations 3, 4)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm, config: NoteConfig) -> None:
        super().__init__()
        self.eps, self.width, self.share = norm.eps, config.width, config.statistics
        self.learning = False
        self.register_buffer("running_mean", norm.running_mean.clone())  # type: ignore[union-attr]
        self.register_buffer("running_var", norm.running_var.clone())  # type: ignore[union-attr]
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        pixels = math.prod(x.shape[2:])
        own_mean, own_square = x.mean((2, 3), keepdim=True), x.square().mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        mean, variance = self.running_mean[:, None, None], self.running_var[:, None, None]
        if self.learning:
            mean = own_mean.mean(0)
            variance = (own_square.mean(0) - mean.square()) * _unbiased(len(x) * pixels)
            self.running_mean = torch.lerp(self.running_mean, mean.detach()[:, 0, 0], self.share)
            self.running_var = torch.lerp(self.running_var, variance.detach()[:, 0, 0], self.share)
        if pixels > 1:
            own_variance = (own_square - own_mean.square()) * _unbiased(pixels)
            spread = variance + self.eps
            mean_error, variance_error = (spread / pixels).sqrt(), spread * math.sqrt(2 / (pixels - 1))
            mean = mean + _shrunk(own_mean - mean, self.width * mean_error)
            variance = (variance + _shrunk(own_variance - variance, self.width * variance_error)).clamp_min(0)
        scale = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias[:, None, None] - mean * scale, x, scale)


def _unbiased(count: int) -> float:
    """What makes a biased variance of so many values an unbiased one."""
    return count / max(1, count - 1)


def _shrunk(difference: Tensor, width: Tensor) -> Tensor:
    """What of a difference lies outside -width to width."""
    return torch.sign(difference) * (difference.abs() - width).clamp_min(0)


def _instance_aware(model: nn.Module, config: NoteConfig) -> nn.Module:
    """A copy of `model` whose every BatchNorm is an `InstanceAwareNorm`."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, _BatchNorm):
            parent = copied.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], InstanceAwareNorm(module, config))
    return copied


def _learning(model: nn.Module, learning: bool) -> None:
    for module in model.modules():
        if isinstance(module, InstanceAwareNorm):
            module.learning = learning
