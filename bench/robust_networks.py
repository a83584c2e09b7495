"""Adversarially trained networks that two cores can afford, for the benches of criticality and RiFT.

Each starts from weights of the measuring data and is trained by PGD-AT on CIFAR-10 (JPEG-75 copy), so that data and
network match. Trainings are kept in a folder of work, epoch by epoch, and are not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edgetta.errors import UsageError
from edgetta.models import load_model
from edgetta.offline.attack import AdversarialTraining, Threat, adversarial_training, classified_right
from edgetta.offline.attack.evaluation import Images as Tensors
from edgetta.offline.training import Batch, Schedule
from edgetta.offline.training import train as fit
from edgetta.sources.datasets import Images, cifar10_jpeg, data_folder


@dataclass(frozen=True)
class RobustNetwork:
    """Where a network comes from, and how it is trained against attacks."""

    model: str  # as `load_model` takes it
    weights: str | None  # a file of the measuring data's `weights`; None: from scratch
    epsilon: float  # l_inf, of training and measuring
    epochs: int  # of adversarial training; 0: robust as it is
    width: float | None = None
    steps: int = 3  # of the attack in training, each epsilon / 2
    learning_rate: float = 0.02

    def load(self) -> nn.Module:
        """The network with its weights, before adversarial training."""
        weights = None if self.weights is None else data_folder() / "weights" / self.weights
        torch.manual_seed(0)
        module = load_model(self.model, weights=weights, width=self.width).module
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def training(self, seed: int) -> AdversarialTraining:
        decay = (max(1, round(0.6 * self.epochs)), max(1, round(0.85 * self.epochs)))
        schedule = Schedule(self.epochs, learning_rate=self.learning_rate, decay_at=decay, seed=seed)
        return AdversarialTraining(
            threat=Threat("linf", self.epsilon),
            steps=self.steps,
            step_size=self.epsilon / 2,
            schedule=schedule,
        )


NETWORKS = {
    "adv_resnet2b": RobustNetwork("adv_resnet2b", "adv_resnet2b.npz", 2 / 255, 0),
    "adv_resnet4b": RobustNetwork("adv_resnet4b", "adv_resnet4b.npz", 2 / 255, 0),
    "adv_resnet4b_at": RobustNetwork("adv_resnet4b", "adv_resnet4b.npz", 4 / 255, 10),
    "resnet8_at": RobustNetwork("resnet8_mlperf", "mlperf_tiny_resnet8.npz", 4 / 255, 8),
    "resnet20_at": RobustNetwork("resnet20", "resnet20_jpegft.npz", 4 / 255, 4),
    "resnet18_narrow_at": RobustNetwork("resnet18", None, 4 / 255, 8, width=0.25, learning_rate=0.1),
    "wrn40_2_narrow_at": RobustNetwork("wrn40_2", None, 4 / 255, 8, width=0.25, learning_rate=0.1),
}
"""By the names that result files have. Those without training are robust at 2/255 as their authors left them."""


def described(name: str) -> RobustNetwork:
    """A network of the table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def robust_network(
    name: str,
    seed: int,
    train: Tensors,
    validation: Tensors,
    work: Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> nn.Module:
    """A network of the table, trained on these images or as it was kept in `work`.

    Raises:
        UsageError: no such network.
    """
    network = described(name)
    model = network.load()
    if network.epochs:
        work.mkdir(parents=True, exist_ok=True)
        adversarial_training(
            model,
            train,
            validation,
            network.training(seed),
            checkpoint=work / f"{name}-{seed}.safetensors",
            progress=progress,
        )
    return model.eval()


def standard_network(
    name: str,
    seed: int,
    train: Tensors,
    validation: Tensors,
    work: Path,
    progress: Callable[[int, int, str], None] | None = None,
) -> nn.Module:
    """The same network from the same weights on the same schedule, trained on clean images alone."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(model(batch.images), batch.labels)

    network = described(name)
    model = network.load()
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{name}-{seed}-standard.safetensors"
    schedule = network.training(seed).schedule
    fit(model, train, validation, loss, classified_right, schedule, checkpoint=checkpoint, progress=progress)
    return model.eval()


def training_images(count: int, validation: int) -> tuple[Tensors, Tensors]:
    """Images to train on and others to choose by, drawn from CIFAR-10's training part in the same way each time."""
    order = np.random.default_rng(0).permutation(50_000)
    return tensors(cifar10_jpeg("train", order[:count])), tensors(cifar10_jpeg("train", order[-validation:]))


def test_images(count: int) -> Images:
    """The same number of test images of every class, the classes mixed."""
    each = count // 10
    rows = np.concatenate([np.arange(each) + 1000 * label for label in range(10)])
    return cifar10_jpeg("test", np.random.default_rng(1).permutation(rows))


def tensors(data: Images) -> Tensors:
    """Images as networks take them, uint8 (N, 3, H, W), and labels."""
    return torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data.labels)
