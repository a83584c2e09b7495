"""SAR (Niu et al., ICLR 2023): entropy of reliable samples at the sharpest neighbouring weights, with recovery.

Equation numbers are the paper's, settings those of the authors' code (github.com/mr-eggplant/SAR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetta.bench.baselines.affine import AffineMethod
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError

AVERAGE = 0.9  # of the moving average of the loss


@dataclass(frozen=True)
class SarConfig:
    """SGD with momentum 0.9 and a neighbourhood of 0.05. The rate is for CIFAR-10; for ImageNet it is 2.5e-4."""

    learning_rate: float = 1e-3
    momentum: float = 0.9
    entropy_margin: float = 0.4  # E_0 as a share of ln(classes), equation 2
    neighbourhood: float = 0.05  # rho, equation 4
    recovery: float = 0.2  # e_0: back to the source where the average loss falls below

    def __post_init__(self) -> None:
        if not 0 < self.entropy_margin <= 1 or self.neighbourhood < 0 or self.recovery < 0:
            raise UsageError("SAR takes an entropy margin in (0, 1], a neighbourhood and a recovery of at least 0")


class Sar(AffineMethod):
    """Predicts and adapts BatchNorm's weight and bias, with the batch's own statistics.

    Parameters of a module named layer4 stay, as in the authors' code. Raises `UsageError` for a model without
    BatchNorm.
    """

    def __init__(self, model: nn.Module, config: SarConfig | None = None) -> None:
        self.config = config or SarConfig()
        super().__init__(model, spared="layer4")
        self.recoveries = 0
        self.average: float | None = None  # of the loss
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        reliable = entropy(logits.detach()) < self._margin(logits)
        if bool(reliable.any()):
            self._descend(images, logits, reliable)
        return logits.detach()

    def reset(self) -> None:
        """Back to the network that was given, with a fresh optimizer."""
        self.model.load_state_dict(self._start)
        self.average = None
        self.optimizer = torch.optim.SGD(self.parameters(), self.config.learning_rate, self.config.momentum)

    def _margin(self, logits: Tensor) -> float:
        return self.config.entropy_margin * math.log(logits.shape[1])

    @torch.enable_grad()
    def _descend(self, images: Tensor, logits: Tensor, reliable: Tensor) -> None:
        """One step with the gradient at the weights that raise the loss most (equations 3 and 4)."""
        entropy(logits)[reliable].mean().backward()
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        here = [parameter.detach().clone() for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient * (self.config.neighbourhood / (length + 1e-12)))
        self.optimizer.zero_grad(set_to_none=True)
        second = entropy(self.forward(images))[reliable]
        kept = second < self._margin(logits)
        loss = second[kept].mean() if bool(kept.any()) else None
        if loss is not None:
            loss.backward()
        with torch.no_grad():
            for parameter, value in zip(parameters, here, strict=True):
                parameter.copy_(value)
        if loss is None:
            return
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        latest = float(loss.detach())
        average = latest if self.average is None else AVERAGE * self.average + (1 - AVERAGE) * latest
        self.average = average
        if average < self.config.recovery:
            self.reset()
            self.recoveries += 1
