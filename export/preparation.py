"""Prepare a model for the device: source statistics, warm-up of the meta-networks, and what that did to accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from edgetta.export.recipe import Derived, Recipe
from edgetta.offline.running_statistics import settle_running_statistics
from edgetta.offline.source_statistics import batches_of, set_source_statistics
from edgetta.offline.warm_up import WarmUpConfig, accuracy, warm_up
from edgetta.segments.torch_engine import Program
from edgetta.sources.labelled import Labelled

STATISTICS_IMAGES = 4096
"""So many source images, drawn at random, are enough for statistics per channel."""

_BATCH = 64

Progress = Callable[[int, int, float], None]  # steps done, steps in all, running loss


@dataclass(frozen=True)
class PreparationReport:
    """Accuracies (0 to 1) on held-out images, adaptation off, and what they took."""

    source_accuracy: float  # the network as trained
    accuracy_before: float  # with meta-networks, before warm-up
    accuracy_after: float  # after it, statistics of batches of 128
    accuracy_running: float  # after it, running statistics, as for single frames
    images: int  # trained on
    held_out: int
    steps: int
    final_loss: float | None  # None without warm-up
    seconds: float


def prepare(
    derived: Derived,
    train: Labelled,
    held_out: Labelled,
    config: WarmUpConfig | None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[AdaptiveNetwork, PreparationReport]:
    """A network on the torch engine whose state is ready to be shipped, and how good it is.

    Args:
        derived: the model and its segments.
        train: source images for statistics and warm-up.
        held_out: source images for the accuracies.
        config: of the warm-up; None leaves it out.
        checkpoint: written after every epoch, and continued from where it exists.
        progress: told of every step.

    Raises:
        As `check` and `warm_up`.
    """
    check(derived.recipe, derived.adaptable.classes, train, held_out, config)
    adaptable = derived.adaptable
    begun = time.perf_counter()
    network = derived.network()
    # Statistics of a batch need a mixture: data often lies sorted by class.
    sample = train.shuffled(0, STATISTICS_IMAGES).images
    held_out = held_out.shuffled(0)
    set_source_statistics(network, map(_floats, batches_of(sample, _BATCH)), adaptable.input_shape)
    before, steps, loss = 0.0, 0, None
    if config is not None:
        labels = (held_out.images, held_out.labels)
        report = warm_up(network, train.images, train.labels, labels, config, checkpoint, progress)
        before, steps, loss = report.accuracy_before, report.steps, report.final_loss
        settle_running_statistics(network, map(_floats, batches_of(sample, _BATCH)))
    after = _accuracy(network, held_out, running=False)
    done = PreparationReport(
        source_accuracy=source_accuracy(derived, held_out),
        accuracy_before=after if config is None else before,
        accuracy_after=after,
        accuracy_running=_accuracy(network, held_out, running=True),
        images=len(train),
        held_out=len(held_out),
        steps=steps,
        final_loss=loss,
        seconds=0.0,
    )
    return network, replace(done, seconds=time.perf_counter() - begun)


def check(recipe: Recipe, classes: int, train: Labelled, held_out: Labelled, config: WarmUpConfig | None) -> None:
    """Find what would stop `prepare`, before anything long begins.

    Raises:
        UsageError: labels that a model with so many classes does not have, fewer images than a batch, or no warm-up
            for meta-networks that are drawn at random.
    """
    for data in (train, held_out):
        if int(data.labels.max()) >= classes:
            raise UsageError(
                f"{data.name} has the label {int(data.labels.max())}, and the model has {classes} classes, from 0; "
                "give data of its classes, or weights for these"
            )
    if config is not None and len(train) < config.batch:
        raise UsageError(
            f"{len(train)} images to train on are fewer than one batch of {config.batch}; give more images, "
            "or a smaller batch"
        )
    if config is None and recipe.initialisation == "published":
        raise UsageError("meta-networks with the published initialisation start at random and need the warm-up")


@torch.no_grad()
def source_accuracy(derived: Derived, data: Labelled) -> float:
    """Share (0 to 1) of images that the network as trained, with its statistics of training, classifies right."""
    program = Program(derived.adaptable.source)
    right = 0
    for images, labels in zip(batches_of(data.images, 128), data.labels.split(128), strict=True):
        right += int((program.run({"x": _floats(images)})[0].argmax(1) == labels).sum())
    return right / len(data)


def _accuracy(network: AdaptiveNetwork, data: Labelled, *, running: bool) -> float:
    """Adaptation off, statistics of batches or running ones; the network is as before afterwards."""
    policy, snapshot = network.batch_norm, network.statistics_snapshot()
    if running and policy != "source":
        network.batch_norm = "ema"
    try:
        return accuracy(network, data.images, data.labels)
    finally:
        network.batch_norm = policy
        network.restore_statistics(snapshot)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
