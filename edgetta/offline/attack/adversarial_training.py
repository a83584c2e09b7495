"""Training that withstands attacks: PGD-AT (Madry et al. 2018) and TRADES (Zhang et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.attack.adversarial_images import adversarial_images, check_labels, classified_right
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.pgd import PGD
from edgetta.offline.attack.threat import Threat
from edgetta.offline.training import Batch, Epoch, Progress, Schedule, train

Method = Literal["pgd", "trades"]


@dataclass(frozen=True)
class AdversarialTraining:
    """The recipe of RiFT (Zhu et al. 2023) by default: 110 epochs, PGD-10 at 8/255, rate 0.1, down at 100 and 105.

    Raises:
        UsageError: a number out of its range.
    """

    method: Method = "pgd"
    threat: Threat = field(default_factory=Threat)
    steps: int = 10  # of the attack
    step_size: float | None = None  # None: epsilon / 4, which is 2/255 at 8/255
    beta: float = 6.0  # TRADES: weight of robustness against accuracy
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.method not in ("pgd", "trades"):
            raise UsageError(f"adversarial training by {self.method!r} is unknown; choose pgd or trades")
        if not self.beta > 0:
            raise UsageError(f"beta {self.beta} of TRADES is not positive")
        _ = self.attack

    @property
    def attack(self) -> PGD:
        """The attack in the loop."""
        step = self.threat.epsilon / 4 if self.step_size is None else self.step_size
        return PGD(self.threat, self.steps, step)


def adversarial_training(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    config: AdversarialTraining | None = None,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train `model` in place against attacks; it ends with the weights of the most robust epoch.

    Attacks run in evaluation mode, so that adversarial images do not depend on each other. The epoch is chosen on the
    validation images, by accuracy under the same attack.

    Args:
        model, data, validation, checkpoint, progress: see `edgetta.offline.training.train`.

    Returns:
        One entry per epoch; its score is the robust accuracy on the validation images.

    Raises:
        As `train`, and UsageError for labels that the model has no output for.
    """
    config = config or AdversarialTraining()
    for images, labels in (data, validation):
        if len(labels):
            check_labels(model, images, labels)

    def robust(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        clean = classified_right(network, images, labels)
        return clean & classified_right(network, adversarial_images(network, images, labels, config.attack), labels)

    return train(
        model,
        data,
        validation,
        batch_loss(config),
        robust,
        config.schedule,
        checkpoint=checkpoint,
        progress=progress,
    )


def batch_loss(config: AdversarialTraining) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss that the method descends, as a function of the model and a batch."""
    attack = config.attack

    def madry(model: nn.Module, batch: Batch) -> Tensor:
        start = batch.drawn(config.threat.random_start)
        points = attack.last_point(model, batch.images, batch.labels, start=start)
        return F.cross_entropy(model(points).float(), batch.labels)

    def trades(model: nn.Module, batch: Batch) -> Tensor:
        # A point of zero divergence has no gradient: TRADES starts from a small Gaussian instead of the ball.
        start = batch.drawn(lambda images, g: images + 1e-3 * torch.randn(images.shape, generator=g).to(images))
        with torch.no_grad():
            calm = _evaluated(model, batch.images).softmax(1)
        points = attack.last_point(model, batch.images, calm, _divergence, start=start.clamp(0, 1))
        logits = model(batch.images).float()
        divergence = F.kl_div(
            model(points).float().log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True
        )
        return F.cross_entropy(logits, batch.labels) + config.beta * divergence

    return madry if config.method == "pgd" else trades


def _divergence(logits: Tensor, calm: Tensor) -> Tensor:
    """Kullback-Leibler divergence (N,) of the prediction from that on the image itself."""
    return F.kl_div(logits.float().log_softmax(1), calm, reduction="none").sum(1)


def _evaluated(model: nn.Module, images: Tensor) -> Tensor:
    with evaluation_mode(model):
        return model(images).float()
