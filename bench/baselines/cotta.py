"""CoTTA (Wang et al., CVPR 2022): a student follows the augmentation-averaged prediction of its slow copy.

Everything trains; a teacher (the student's moving average) and the source network are held beside it. Equation numbers
are the paper's, settings those of the authors' code for CIFAR (github.com/qinenergy/cotta).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.baselines.batch_norm_statistics import with_batch_statistics
from edgetta.errors import UsageError
from edgetta.memory.meter import stock_saved_bytes
from edgetta.offline.augment import Augmentation, augment

COLOURS = Augmentation(
    jitter=1.0,
    brightness=0.4,
    contrast=0.3,
    saturation=0.5,
    hue=0.06,
    blur=1.0,
    blur_sigma=(0.001, 0.5),
    grey=0.0,
    flip=0.5,
)
GAMMA = 0.3  # drawn from [1 - GAMMA, 1 + GAMMA]
DEGREES, SHIFT, ZOOM = 15.0, 1 / 16, 0.1
NOISE = 0.005


@dataclass(frozen=True)
class CottaConfig:
    """Settings for CIFAR-10: Adam at 1e-3, one step per batch (at batch 200), 32 augmentations below confidence 0.92.

    For ImageNet: rate 0.01 by SGD, restoration 0.001, confidence 0.1.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.9  # Adam's first beta
    teacher_momentum: float = 0.999  # alpha of equation 2
    restoration: float = 0.01  # p of equation 7: share of weights put back to the source's
    confidence: float = 0.92  # p_th of equation 4: augment where the source is less sure
    augmentations: int = 32  # N of equation 3

    def __post_init__(self) -> None:
        shares = (self.teacher_momentum, self.restoration, self.confidence)
        if not all(0 <= share <= 1 for share in shares) or self.augmentations < 1:
            raise UsageError(
                "CoTTA's teacher momentum, restoration and confidence lie between 0 and 1, and it augments at least "
                f"once, not {shares} and {self.augmentations}"
            )


class Cotta:
    """Predicts with the teacher and adapts the student, all weights, with the batch's own statistics.

    Every image is augmented by its own draw (the authors draw once per batch). Raises `UsageError` for a model without
    BatchNorm.
    """

    def __init__(self, model: nn.Module, config: CottaConfig | None = None, seed: int = 0) -> None:
        self.config = config or CottaConfig()
        self.source = with_batch_statistics(model).requires_grad_(False)
        self._seed = seed
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        target = self.teacher_logits(images)
        self.objective(logits, target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._follow()
        self._restore()
        return target

    @torch.enable_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The student's logits with the graph that the backward needs."""
        logits: Tensor = self.student(images)
        return logits

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits, averaged over augmentations where the source is unsure of the batch (equation 4)."""
        confidence = self.source(images).softmax(1).amax(1).mean()
        if float(confidence) >= self.config.confidence:
            plain: Tensor = self.teacher(images)
            return plain
        total = self.teacher(augmented(images, self._generator))
        for _ in range(self.config.augmentations - 1):
            total += self.teacher(augmented(images, self._generator))
        average: Tensor = total / self.config.augmentations
        return average

    @torch.enable_grad()
    def objective(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of the student's prediction with the teacher's (equation 5)."""
        return -(target.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return self.student.parameters()

    def saved_bytes(self, images: Tensor) -> int:
        """Bytes that autograd keeps between forward and backward: each storage once, weights not counted."""

        def loss() -> Tensor:
            logits = self.forward(images)
            return self.objective(logits, logits.detach())

        return stock_saved_bytes(loss, self.parameters())

    def reset(self) -> None:
        """Student and teacher back to the network that was given, with a fresh optimizer and the same draws again."""
        self.student = copy.deepcopy(self.source).requires_grad_(True)
        self.teacher = copy.deepcopy(self.source)
        self.optimizer = torch.optim.Adam(
            self.student.parameters(), self.config.learning_rate, (self.config.momentum, 0.999)
        )
        self._generator = torch.Generator().manual_seed(self._seed)

    @torch.no_grad()
    def _follow(self) -> None:
        """The teacher moves towards the student (equation 2)."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.config.teacher_momentum)

    @torch.no_grad()
    def _restore(self) -> None:
        """A random share of the student's weights goes back to the source's (equations 7 and 8)."""
        for weight, source in zip(self.student.parameters(), self.source.parameters(), strict=True):
            chosen = torch.rand(weight.shape, generator=self._generator) < self.config.restoration
            torch.where(chosen, source, weight, out=weight.data)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random version of images (N, C, H, W) in [0, 1]: colours, gamma, a small affine map, blur, flip, noise."""
    count = images.shape[0]

    def uniform(reach: float, centre: float = 0.0) -> Tensor:
        return centre + reach * (2 * torch.rand(count, generator=generator) - 1).to(images.dtype)

    out = augment(images, COLOURS, generator)
    out = out.clamp_(1e-8, 1).pow_(uniform(GAMMA, 1.0).view(-1, 1, 1, 1))
    angle, zoom = uniform(math.radians(DEGREES)), uniform(ZOOM, 1.0)
    map_to_source = torch.zeros(count, 2, 3, dtype=images.dtype)
    map_to_source[:, 0, 0] = map_to_source[:, 1, 1] = angle.cos() / zoom
    map_to_source[:, 0, 1], map_to_source[:, 1, 0] = -angle.sin() / zoom, angle.sin() / zoom
    map_to_source[:, 0, 2], map_to_source[:, 1, 2] = uniform(2 * SHIFT), uniform(2 * SHIFT)
    grid = F.affine_grid(map_to_source, list(images.shape), align_corners=False)
    out = F.grid_sample(out, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(images.shape, generator=generator).to(images.dtype)
    return out.add_(noise, alpha=NOISE).clamp_(0, 1)
