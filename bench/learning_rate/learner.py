"""The learner on a training run, against a grid of constant rates at equal epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.datasets import cifar10_jpeg
from edgetta.bench.demo_backbone import as_tensor, shifted
from edgetta.bench.learning_rate.networks import PRERESNET, Narrow, images
from edgetta.models import load_model
from edgetta.offline.curvature import LossSurface
from edgetta.offline.learning_rate import PUBLISHED, LearnerConfig, LearningRateLearner

LEARNER = "learner"


@dataclass(frozen=True)
class LearnerBenchConfig:
    """The protocol; it is written into the result file."""

    network: Narrow = PRERESNET
    training_images: int = 10_000
    test_images: int = 2_000
    epochs: int = 5
    batch: int = 64
    optimizer: str = "sgd"  # plain, without momentum: what the curvature of a batch bounds most directly
    grid: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)  # of weights, order and shifts
    shift: int = 2  # pixels
    warm: float = 0.1  # the rate before the first refresh, for its first steps
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(every_epochs=1, iterations=10, batches=4))
    published: str | None = None  # also a rule of `PUBLISHED`, by name


def planned(config: LearnerBenchConfig) -> list[tuple[str, int]]:
    """Every run: method and seed."""
    methods = [LEARNER, *([config.published] if config.published else []), *(f"{rate:g}" for rate in config.grid)]
    return [(method, seed) for seed in config.seeds for method in methods]


def measure(config: LearnerBenchConfig, done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A row for each run that is not `done`; accuracies from 0 to 1."""
    train = images(config.training_images, 0)
    rows = np.random.default_rng(1).permutation(10_000)[: config.test_images]
    held = cifar10_jpeg("test", rows)
    test = as_tensor(held.images), torch.from_numpy(held.labels)
    for method, seed in planned(config):
        if (method, seed) not in done:
            yield {
                "optimizer": config.optimizer,
                "method": method,
                "seed": seed,
                **run(config, method, seed, train, test),
            }


def run(
    config: LearnerBenchConfig,
    method: str,
    seed: int,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train once and measure at the end, by statistics of training."""
    x, y = train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = load_model(config.network.model, width=config.network.width).module
    learning = method in (LEARNER, config.published)
    optimizer = torch.optim.SGD(module.parameters(), config.warm if learning else float(method))
    learner = None
    if learning:
        own = config.learner if method == LEARNER else PUBLISHED[method]
        surface = LossSurface(module, F.cross_entropy, batch_norm="batch")
        learner = LearningRateLearner(optimizer, surface, (x, y), batch_size=config.batch, config=own)
    generator = torch.Generator().manual_seed(seed)
    begun = time.perf_counter()
    for epoch in range(config.epochs):
        if learner is not None:
            learner.start_epoch(epoch)
        module.train()
        order = torch.randperm(len(x), generator=generator)
        for k in range(0, len(x) - config.batch + 1, config.batch):
            chosen = order[k : k + config.batch]
            loss = F.cross_entropy(module(shifted(x[chosen], config.shift, generator)), y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if progress is not None:
            progress(epoch)
    seconds = time.perf_counter() - begun
    return {
        "final_accuracy": accuracy(module, *test),
        "analysis_share": 0.0 if learner is None else learner.seconds / seconds,
        "rates": [] if learner is None else [refresh.rate for refresh in learner.history],
    }


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share (0 to 1) that the network, in evaluation mode, classifies right; a diverged one guesses."""
    module.eval()
    right = sum(
        int((module(part).argmax(1) == labels).sum()) for part, labels in zip(x.split(256), y.split(256), strict=True)
    )
    return right / len(y)


def settings(config: LearnerBenchConfig) -> dict[str, Any]:
    """The protocol as the result file has it."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**plain, "data": "CIFAR-10 (JPEG-75 copy)"}
