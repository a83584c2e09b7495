"""The learner on a training run, against a grid of constant rates at equal epochs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.demo_backbone import shifted
from edgetta.cli.data import labelled_data
from edgetta.errors import UsageError
from edgetta.models import load_model
from edgetta.offline.curvature import LossSurface
from edgetta.offline.learning_rate import PUBLISHED, LearnerConfig, LearningRateLearner
from edgetta.sources.labelled import Labelled

OURS = "quantile"
"""The rule of the safer default; the others are those of `PUBLISHED`."""


@dataclass(frozen=True)
class LearnerBenchConfig:
    """The protocol; it is written into the result file."""

    model: str = "preresnet20"
    width: float = 0.25
    data: str = "cifar10-jpeg"  # as DATA of the command line
    training_images: int = 10_000
    test_images: int = 5_000
    held_out: float = 1 / 6  # of DATA without test images of its own
    epochs: int = 5
    batch: int = 64
    momentum: float = 0.9  # of SGD; the published rules for heavy ball set their own
    weight_decay: float = 0.0
    rules: tuple[str, ...] = (OURS, "ssgdm-median")
    grid: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)  # constant rates
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, order and shifts
    shift: int = 2  # pixels by which training images are moved
    device: str = "cpu"
    # Few epochs, so ours is refreshed every second one; the largest eigenvalue needs few iterations.
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(every_epochs=2, iterations=8, batches=2))

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule != OURS and rule not in PUBLISHED:
                raise UsageError(f"rule {rule!r} is unknown; choose from {', '.join((OURS, *PUBLISHED))}")

    @property
    def optimizer(self) -> str:
        """The optimizer's name in the rows."""
        return f"sgd, momentum {self.momentum:g}" if self.momentum else "sgd"


def planned(config: LearnerBenchConfig) -> list[tuple[str, int]]:
    """Every run: method (a rule, or a constant rate) and seed."""
    return [(method, seed) for seed in config.seeds for method in (*config.rules, *(f"{r:g}" for r in config.grid))]


def measure(config: LearnerBenchConfig, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A row for each run that is not `done`; accuracies from 0 to 1."""
    missing = [plan for plan in planned(config) if plan not in done]
    if not missing:
        return
    shape = load_model(config.model, width=config.width).input_shape
    train, _ = labelled_data(config.data, shape, held_out=config.held_out, seed=0, limit=config.training_images)
    _, test = labelled_data(config.data, shape, held_out=config.held_out, seed=0, limit=config.test_images)
    for method, seed in missing:
        yield {"optimizer": config.optimizer, "method": method, "seed": seed, **run(config, method, seed, train, test)}


def run(config: LearnerBenchConfig, method: str, seed: int, train: Labelled, test: Labelled) -> dict[str, Any]:
    """Train once with a rule's rates or a constant rate, and measure at the end."""
    device = torch.device(config.device)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = load_model(config.model, width=config.width, num_classes=classes).module.to(device)
    learning = method in config.rules
    rate = min(config.grid) if learning else float(method)  # a rule sets its own before the first step
    optimizer = torch.optim.SGD(module.parameters(), rate, config.momentum, weight_decay=config.weight_decay)
    learner = None
    if learning:
        own = config.learner if method == OURS else PUBLISHED[method]
        surface = LossSurface(module, F.cross_entropy, batch_norm="batch")
        samples = _floats(train.images), train.labels
        learner = LearningRateLearner(optimizer, surface, samples, batch_size=config.batch, config=own)
    generator = torch.Generator().manual_seed(seed)
    begun = time.perf_counter()
    for epoch in range(config.epochs):
        if learner is not None:
            learner.start_epoch(epoch)
        module.train()
        order = torch.randperm(len(train), generator=generator)
        for k in range(0, len(train) - config.batch + 1, config.batch):
            chosen = order[k : k + config.batch]
            images = shifted(_floats(train.images[chosen]), config.shift, generator).to(device)
            loss = F.cross_entropy(module(images), train.labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - begun
    return {
        "final_accuracy": accuracy(module, test, device),
        "analysis_share": 0.0 if learner is None else learner.seconds / seconds,
        "rates": [] if learner is None else [refresh.rate for refresh in learner.history],
    }


@torch.no_grad()
def accuracy(module: nn.Module, test: Labelled, device: torch.device) -> float:
    """Share (0 to 1) that the network classifies right, by its statistics of training; one that diverged guesses."""
    module.eval()
    predicted = [module(_floats(part).to(device)).argmax(1).cpu() for part in test.images.split(256)]
    return float((torch.cat(predicted) == test.labels).float().mean())


def against_the_grid(rows: Sequence[dict[str, Any]], rules: Sequence[str]) -> dict[str, float]:
    """Rule -> points of accuracy, mean over seeds, that it is above the best constant rate."""
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row["method"], []).append(row["final_accuracy"])
    constant = [fmean(found) for method, found in means.items() if method not in rules]
    return {rule: 100 * (fmean(means[rule]) - max(constant)) for rule in rules if rule in means and constant}


def settings(config: LearnerBenchConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "images": "CIFAR-10 (JPEG-75 copy)" if config.data == "cifar10-jpeg" else config.data}


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
