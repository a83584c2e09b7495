"""EATA (Niu et al., ICML 2022): TENT that leaves out unreliable and redundant samples, held near its source weights.

Section and equation numbers are the paper's. Settings after the authors' code (github.com/mr-eggplant/EATA) and, for
CIFAR, the benchmark of Döbler et al. (github.com/mariodoebler/test-time-adaptation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.baselines.affine import AffineMethod
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError

PROBABILITY_MOMENTUM = 0.9  # of the moving average of predictions, equation 4


@dataclass(frozen=True)
class EataConfig:
    """Settings for CIFAR-10: Adam at 1e-3 (at batch 200), similarity below 0.4, Fisher weight 1.

    For ImageNet: SGD at 2.5e-4, momentum 0.9, similarity below 0.05, Fisher weight 2000.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9  # of SGD, and Adam's first beta
    entropy_margin: float = 0.4  # E_0 as a share of ln(classes), equation 3
    similarity_margin: float = (
        0.4  # epsilon: samples whose cosine with the average prediction reaches it are redundant
    )
    fisher_weight: float = 1.0  # beta, equation 8

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "sgd") or not 0 < self.entropy_margin <= 1 or self.fisher_weight < 0:
            raise UsageError(
                "EATA uses adam or sgd, an entropy margin in (0, 1] and a Fisher weight of at least 0, not "
                f"{self.optimizer!r}, {self.entropy_margin} and {self.fisher_weight}"
            )


class Eata(AffineMethod):
    """Predicts and adapts BatchNorm's weight and bias, with the batch's own statistics.

    source_batches  images (N, C, H, W) of the source, without labels, for the Fisher information (equation 9; the
                    authors take 2,000 images); without them nothing holds the weights back, which is ETA
    Raises `UsageError` for a model without BatchNorm.
    """

    def __init__(
        self, model: nn.Module, source_batches: Iterable[Tensor] | None = None, config: EataConfig | None = None
    ) -> None:
        self.config = config or EataConfig()
        super().__init__(model)
        self.fisher = self._fisher(source_batches or ())
        self._source = [parameter.detach().clone() for parameter in self.parameters()] if self.fisher else []
        self.average: Tensor | None = None  # of predictions
        self.optimizer = self._optimizer()

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.forward(images)
        loss = self.objective(logits)
        if loss is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()

    @torch.enable_grad()
    def objective(self, logits: Tensor) -> Tensor | None:
        """Equation 8 for one batch, or None where no sample is left; moves the average prediction (equation 4)."""
        margin = self.config.entropy_margin * math.log(logits.shape[1])
        entropies = entropy(logits)
        chosen = entropies.detach() < margin  # reliable, equation 3
        probabilities = logits.detach().softmax(1)
        if self.average is not None:  # not redundant, equation 5
            similarity = F.cosine_similarity(self.average[None], probabilities, dim=1)
            chosen &= similarity < self.config.similarity_margin
        if not bool(chosen.any()):
            return None
        mean = probabilities[chosen].mean(0)
        old, share = self.average, PROBABILITY_MOMENTUM
        self.average = mean if old is None else share * old + (1 - share) * mean
        weights = torch.exp(margin - entropies[chosen].detach())
        return (weights * entropies[chosen]).mean() + self._anchor()

    def reset(self) -> None:
        """Back to the network that was given, with a fresh optimizer and no average prediction."""
        self.model.load_state_dict(self._start)
        self.average = None
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        if c.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), c.learning_rate, (c.momentum, 0.999))
        return torch.optim.SGD(self.parameters(), c.learning_rate, c.momentum)

    def _anchor(self) -> Tensor:
        """beta * sum of Fisher * (weight - source weight)^2; zero without Fisher information."""
        terms = [
            (fisher * (parameter - source).square()).sum()
            for parameter, fisher, source in zip(self.parameters(), self.fisher, self._source, strict=False)
        ]
        return self.config.fisher_weight * torch.stack(terms).sum() if terms else torch.zeros(())

    def _fisher(self, batches: Iterable[Tensor]) -> list[Tensor]:
        """Mean over batches of the squared gradient of the cross-entropy with the predicted labels (equation 9)."""
        sums: list[Tensor] = []
        count = 0
        for images in batches:
            logits = self.forward(images)
            gradients = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), list(self.parameters()))
            squares = [gradient.square() for gradient in gradients]
            sums = [a + b for a, b in zip(sums, squares, strict=True)] if sums else squares
            count += 1
        return [total / count for total in sums]
