"""TENT (Wang et al., ICLR 2021): each batch lowers its own entropy, through BatchNorm's weight and bias alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgetta.bench.baselines.affine import AffineMethod
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError


@dataclass(frozen=True)
class TentConfig:
    """The published settings for CIFAR-size networks: Adam at 1e-3, one step per batch (there at batch 200).

    For ImageNet-size networks: SGD at 2.5e-4, momentum 0.9, batch 64.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9  # of SGD, and Adam's first beta
    second_beta: float = 0.999  # of Adam
    steps: int = 1  # per batch

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd") or self.steps < 1:
            raise UsageError(f"TENT uses adam or sgd and at least one step, not {self.optimizer!r} and {self.steps}")


class Tent(AffineMethod):
    """Predicts and adapts: the entropy of all samples, BatchNorm's weight and bias, the batch's own statistics.

    The gradient runs through the statistics, as stock BatchNorm has it. Dropout stays off. Raises `UsageError` for a
    model without BatchNorm.
    """

    def __init__(self, model: nn.Module, config: TentConfig | None = None) -> None:
        self.config = config or TentConfig()
        super().__init__(model)
        self.optimizer = self._optimizer()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        prediction = logits.detach()
        for step in range(self.config.steps):
            loss = entropy(logits if step == 0 else self.forward(images)).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return prediction

    def reset(self) -> None:
        """Back to the network that was given, with a fresh optimizer."""
        self.model.load_state_dict(self._start)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        if c.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), c.learning_rate, (c.momentum, c.second_beta))
        return torch.optim.SGD(self.parameters(), c.learning_rate, c.momentum)
