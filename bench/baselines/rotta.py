"""RoTTA (Yuan, Xie and Li, CVPR 2023): for streams whose neighbours in time are alike.

BatchNorm statistics that move slowly, a memory that balances classes and ages, and a student that follows its slow
copy on the memory's images. Section and equation numbers are the paper's, settings those of the authors' code
(github.com/BIT-DA/RoTTA).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetta.bench.baselines.batch_norm_statistics import batch_norms, moments
from edgetta.bench.baselines.cotta import augmented
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from edgetta.memory.meter import stock_saved_bytes


@dataclass(frozen=True)
class RottaConfig:
    """The published settings: Adam at 1e-3, an update per 64 images, a memory of 64."""

    learning_rate: float = 1e-3
    momentum: float = 0.9  # Adam's first beta
    teacher_momentum: float = 0.999  # 1 - nu, equation 9
    statistics: float = 0.05  # alpha: how fast BatchNorm's statistics move, equation 3
    memory: int = 64  # images
    period: int = 64  # images from update to update
    age_weight: float = 1.0  # lambda_t, equation 6
    uncertainty_weight: float = 1.0  # lambda_u

    def __post_init__(self) -> None:
        if not 0 < self.statistics <= 1 or self.memory < 1 or self.period < 1:
            raise UsageError("RoTTA moves statistics by a share in (0, 1] and remembers at least one image")


@dataclass
class Remembered:
    """An image in the memory."""

    image: Tensor  # (C, H, W)
    uncertainty: float  # entropy in nats when it was seen
    age: int = 0  # images seen since


class BalancedMemory:
    """At most `capacity` images, about as many of each predicted class, fresh and certain ones first (section 3.3)."""

    def __init__(self, classes: int, config: RottaConfig) -> None:
        self.config = config
        self.by_class: list[list[Remembered]] = [[] for _ in range(classes)]

    def __len__(self) -> int:
        return sum(map(len, self.by_class))

    def add(self, image: Tensor, label: int, uncertainty: float) -> None:
        """Take in an image, where it is worth more than what would have to go."""
        new = Remembered(image.clone(), uncertainty)
        if self._makes_room(label, self._score(new)):
            self.by_class[label].append(new)
        for item in self.items():
            item.age += 1

    def items(self) -> list[Remembered]:
        return [item for items in self.by_class for item in items]

    def _makes_room(self, label: int, score: float) -> bool:
        if len(self.by_class[label]) < self.config.memory / len(self.by_class):
            if len(self) < self.config.memory:
                return True
            most = max(map(len, self.by_class))
            candidates = [k for k, items in enumerate(self.by_class) if len(items) == most]
        else:
            candidates = [label]
        scored = [(self._score(item), k, i) for k in candidates for i, item in enumerate(self.by_class[k])]
        if not scored:
            return True
        worst, k, i = max(scored)
        if worst <= score:
            return False
        self.by_class[k].pop(i)
        return True

    def _score(self, item: Remembered) -> float:
        """Equation 6: the larger, the sooner it goes."""
        age = 1 / (1 + math.exp(-item.age / self.config.memory))
        uncertainty = item.uncertainty / math.log(len(self.by_class))
        return self.config.age_weight * age + self.config.uncertainty_weight * uncertainty


class Rotta:
    """Predicts with the teacher; the student's BatchNorm weights and biases adapt.

    The teacher's other weights are the student's, as they never move. Raises `UsageError` for a model without
    BatchNorm.
    """

    def __init__(self, model: nn.Module, config: RottaConfig | None = None, seed: int = 0) -> None:
        self.config = config or RottaConfig()
        self._given = copy.deepcopy(model).eval().requires_grad_(False)
        batch_norms(self._given)
        self._seed = seed
        self._seen = 0
        self.memory: BalancedMemory | None = None
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.teacher(images)
        if self.memory is None:
            self.memory = BalancedMemory(logits.shape[1], self.config)
        for image, label, uncertainty in zip(images, logits.argmax(1).tolist(), entropy(logits).tolist(), strict=True):
            self.memory.add(image, label, uncertainty)
            self._seen += 1
            if self._seen % self.config.period == 0:
                self._update(self.memory.items())
        return logits

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return (parameter for parameter in self.student.parameters() if parameter.requires_grad)

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""
        student = copy.deepcopy(self.student)
        return stock_saved_bytes(lambda: entropy(student(images)).mean(), student.parameters())

    def reset(self) -> None:
        """Back to the network that was given, with an empty memory and a fresh optimizer."""
        self.student = _with_slow_statistics(self._given, self.config.statistics)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.optimizer = torch.optim.Adam(self.parameters(), self.config.learning_rate, (self.config.momentum, 0.999))
        self.memory = None
        self._seen = 0
        self._generator = torch.Generator().manual_seed(self._seed)

    def _update(self, items: list[Remembered]) -> None:
        """One step on the memory's images, then the teacher follows (equations 7 to 9)."""
        images = torch.stack([item.image for item in items])
        ages = torch.tensor([item.age / self.config.memory for item in items])
        timeliness = torch.exp(-ages) / (1 + torch.exp(-ages))
        self.teacher.train()
        with torch.no_grad():
            target = self.teacher(images).softmax(1)
        self.teacher.eval()
        self.student.train()
        with torch.enable_grad():
            prediction = self.student(augmented(images, self._generator))
            loss = (-(target * prediction.log_softmax(1)).sum(1) * timeliness).mean()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.config.teacher_momentum)


class _SlowNorm(nn.Module):
    """BatchNorm that in training normalises with its running statistics, once those of the batch have joined."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: _BatchNorm, share: float) -> None:
        super().__init__()
        self.share, self.eps = share, norm.eps
        self.register_buffer("running_mean", norm.running_mean.clone())  # type: ignore[union-attr]
        self.register_buffer("running_var", norm.running_var.clone())  # type: ignore[union-attr]
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            new_mean, new_variance = moments(x, tuple(axis for axis in range(x.dim()) if axis != 1))
            mean, variance = torch.lerp(mean, new_mean, self.share), torch.lerp(variance, new_variance, self.share)
            self.running_mean, self.running_var = mean.detach(), variance.detach()
        shape = (1, -1, *([1] * (x.dim() - 2)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)


def _with_slow_statistics(model: nn.Module, share: float) -> nn.Module:
    """A copy of `model` in which every BatchNorm is a `_SlowNorm`, whose weight and bias alone train."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, _BatchNorm):
            parent = copied.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _SlowNorm(module, share))
    return copied
