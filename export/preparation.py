"""The stages of a preparation that make meta-networks: source statistics, warm-up, content, and their accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.export.content import measure_content
from edgetta.export.recipe import Derived, Recipe
from edgetta.offline.network import Network
from edgetta.offline.pixels import as_floats
from edgetta.offline.running_statistics import with_running_statistics
from edgetta.offline.source_statistics import batches_of, with_source_statistics
from edgetta.offline.stage import Accuracies, Stage
from edgetta.offline.stage_files import StageFiles
from edgetta.offline.warm_up import WarmUpConfig, accuracy, warm_up
from edgetta.segments.torch_engine import Program
from edgetta.sources.labelled import Labelled, check_classes

STATISTICS_IMAGES = 4096
"""So many source images, drawn at random, are enough for statistics per channel."""

CALIBRATION_IMAGES = 512
"""So many are enough for the ranges of int8, which are one number per activation."""

CHECKPOINT = "warm_up.checkpoint.safetensors"
_BATCH = 64

Progress = Callable[[int, int, float], None]  # steps done, steps in all, running loss


@dataclass(frozen=True)
class PreparationReport:
    """Accuracies (0 to 1) on held-out images, adaptation off, and what they took."""

    source_accuracy: float  # the network as it ships: as given, or as the stages before left it
    accuracy_before: float  # with meta-networks, before warm-up
    accuracy_after: float  # after it, statistics of batches of 128
    accuracy_running: float  # after it, statistics of training, as for single frames
    images: int  # trained on
    held_out: int
    steps: int
    final_loss: float | None  # None without warm-up
    seconds: float
    stages: tuple[Stage, ...] = ()  # all of them, in the order in which they were done


def prepare(
    derived: Derived,
    train: Labelled,
    held_out: Labelled,
    config: WarmUpConfig | None,
    files: StageFiles | None = None,
    progress: Progress | None = None,
) -> tuple[Network, PreparationReport]:
    """The network that is ready to be shipped, and how good it is.

    Args:
        derived: the model and its programs.
        train: source images for statistics and warm-up.
        held_out: source images for the accuracies.
        config: of the warm-up; None leaves it out.
        files: keeps what is finished, and the last epoch of a warm-up that is not; continued from where it is there.
        progress: told of every step.

    Raises:
        As `check` and `warm_up`.
    """
    check(derived.recipe, derived.adaptable.classes, train, held_out, config)
    network = derived.network()
    held_out = held_out.shuffled(0)  # statistics of a batch need a mixture: data often lies sorted by class
    if files is None:
        facts, state = _meta_networks(network, derived, train, held_out, config, None, progress)
    else:

        def compute() -> dict[str, Tensor]:
            found, tensors = _meta_networks(network, derived, train, held_out, config, files, progress)
            files.json("meta", lambda: found)
            return tensors

        state = files.weights("meta", compute)
        facts = files.json("meta", dict)
    return network.with_tensors(state), _report(facts, train, held_out, config)


def _meta_networks(
    network: Network,
    derived: Derived,
    train: Labelled,
    held_out: Labelled,
    config: WarmUpConfig | None,
    files: StageFiles | None,
    progress: Progress | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What was measured, and the state that ships."""
    begun = time.perf_counter()
    own = derived.adaptable.batch_norm == "adaptive"
    sample = train.shuffled(0, STATISTICS_IMAGES).images
    network = with_source_statistics(network, map(as_floats, batches_of(sample, _BATCH)))
    found: dict[str, Any] = {"source": source_accuracy(derived, held_out), "steps": 0, "final_loss": None}
    if config is None:
        found["before"] = _accuracies(network, held_out, own)
    else:
        found["seconds_before"] = time.perf_counter() - begun
        checkpoint = None if files is None else files.path(CHECKPOINT)
        evaluated = held_out.images, held_out.labels
        network, report = warm_up(
            network, train.images, train.labels, evaluated, config, checkpoint, progress, own_statistics=own
        )
        found |= {"before": {"clean": report.accuracy_before}, "steps": report.steps, "final_loss": report.final_loss}
        if own:
            network = with_running_statistics(network, map(as_floats, batches_of(sample, _BATCH)))
    found["after"] = _accuracies(network, held_out, own)
    content = measure_content(network.programs, map(as_floats, batches_of(sample, _BATCH)))
    return {**found, "seconds": time.perf_counter() - begun}, Network(network.programs, content).tensors()


def _report(
    facts: dict[str, Any], train: Labelled, held_out: Labelled, config: WarmUpConfig | None
) -> PreparationReport:
    source, before, after = Accuracies(facts["source"]), Accuracies(**facts["before"]), Accuracies(**facts["after"])
    first = facts["seconds"] if config is None else facts["seconds_before"]
    stages = [Stage("meta_networks", source, before, first)]
    if config is not None:
        trained = {"steps": facts["steps"], "final_loss": facts["final_loss"]}
        stages.append(Stage("warm_up", before, after, facts["seconds"] - first, trained))
    assert after.running is not None
    return PreparationReport(
        source_accuracy=source.clean,
        accuracy_before=before.clean,
        accuracy_after=after.clean,
        accuracy_running=after.running,
        images=len(train),
        held_out=len(held_out),
        steps=facts["steps"],
        final_loss=facts["final_loss"],
        seconds=facts["seconds"],
        stages=tuple(stages),
    )


def calibration(train: Labelled) -> Iterator[Tensor]:
    """Source images that the ranges of int8 are measured on, drawn at random, in batches."""
    return map(as_floats, batches_of(train.shuffled(0, CALIBRATION_IMAGES).images, _BATCH))


def check(recipe: Recipe, classes: int, train: Labelled, held_out: Labelled, config: WarmUpConfig | None) -> None:
    """Find what would stop `prepare`, before anything long begins.

    Raises:
        UsageError: classes or labels that a model with so many does not have, fewer images than a batch, or no warm-up
            for meta-networks that are drawn at random.
    """
    for data in (train, held_out):
        check_classes(data, classes)
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
        right += int((program.run({"x": as_floats(images)})[0].argmax(1) == labels).sum())
    return right / len(data)


def _accuracies(network: Network, data: Labelled, own: bool) -> dict[str, float]:
    """Adaptation off, with each batch's statistics where these count, and with those of training."""
    clean = accuracy(network, data.images, data.labels, own_statistics=own)
    return asdict(Accuracies(clean, running=accuracy(network, data.images, data.labels, own_statistics=False)))
