"""The learner on a training run, against a grid of constant rates at equal epochs.

Our rule warms up and lets the rate fall to zero, as trainings do. The grid and our rule are run both ways, constant
and falling in the same line: what the shape of the schedule earns is not to be taken for what curvature earns.
"""

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

FALLING = ", falling"
"""Behind the name of a method whose rate falls to zero in a straight line."""


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
    # Few epochs, so ours is refreshed within them; the largest eigenvalue needs few iterations.
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(every_epochs=3, iterations=8, batches=4))

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule != OURS and rule not in PUBLISHED:
                raise UsageError(f"rule {rule!r} is unknown; choose from {', '.join((OURS, *PUBLISHED))}")

    @property
    def optimizer(self) -> str:
        """The optimizer's name in the rows."""
        return f"sgd, momentum {self.momentum:g}" if self.momentum else "sgd"


def planned(config: LearnerBenchConfig) -> list[tuple[str, int]]:
    """Every run: method (a rule, or a rate, constant or falling) and seed."""
    ours = [method for rule in config.rules for method in ((rule + FALLING, rule) if rule == OURS else (rule,))]
    grid = [method for rate in config.grid for method in (f"{rate:g}", f"{rate:g}{FALLING}")]
    return [(method, seed) for seed in config.seeds for method in (*ours, *grid)]


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
    """Train once by a method of `planned`, and measure at the end."""
    device = torch.device(config.device)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = load_model(config.model, width=config.width, num_classes=classes).module.to(device)
    name, falling = method.removesuffix(FALLING), method.endswith(FALLING)
    learning = name in config.rules
    rate = min(config.grid) if learning else float(name)  # a rule sets its own before the first step
    steps = config.epochs * (len(train) // config.batch)
    optimizer = torch.optim.SGD(module.parameters(), rate, config.momentum, weight_decay=config.weight_decay)
    learner = None
    if learning:
        own = config.learner if name == OURS else PUBLISHED[name]
        surface = LossSurface(module, F.cross_entropy, batch_norm="batch")
        samples = _floats(train.images), train.labels
        length = steps if falling else None
        learner = LearningRateLearner(optimizer, surface, samples, batch_size=config.batch, config=own, steps=length)
    generator = torch.Generator().manual_seed(seed)
    begun, done = time.perf_counter(), 0
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
            if falling and learner is None:
                optimizer.param_groups[0]["lr"] = rate * (1 - done / steps)
            optimizer.step()
            done += 1
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


def against_the_grid(rows: Sequence[dict[str, Any]], rules: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each rule's methods, points of accuracy above the grid's best constant and its best falling rate."""
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row["method"], []).append(row["final_accuracy"])
    ours = {method: fmean(found) for method, found in means.items() if method.removesuffix(FALLING) in rules}
    grid = {method: fmean(found) for method, found in means.items() if method not in ours}
    best = {
        kind: max((mean for method, mean in grid.items() if method.endswith(FALLING) == falls), default=None)
        for kind, falls in (("constant", False), ("falling", True))
    }
    return {
        method: {kind: 100 * (mean - limit) for kind, limit in best.items() if limit is not None}
        for method, mean in ours.items()
    }


def settings(config: LearnerBenchConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "images": "CIFAR-10 (JPEG-75 copy)" if config.data == "cifar10-jpeg" else config.data}


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
