"""The stages of a preparation that change the backbone: adversarial training, then RiFT."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.attack import PGD, AdversarialTraining, adversarial_training
from edgetta.offline.attack.adversarial_images import check_labels
from edgetta.offline.attack.evaluation import Images, evaluate
from edgetta.offline.rift import RiftConfig, RiftReport, run_rift
from edgetta.offline.stage import Accuracies, Stage
from edgetta.offline.stage_files import StageFiles

Progress = Callable[[str, int, int, str], None]  # stage, steps done, steps in all, a note


@dataclass(frozen=True)
class RobustConfig:
    """Which of the two stages are wanted, and how.

    Raises:
        UsageError: neither of them.
    """

    attack: PGD  # for robust accuracy on held-out images
    training: AdversarialTraining | None = None
    rift: RiftConfig | None = None

    def __post_init__(self) -> None:
        if self.training is None and self.rift is None:
            raise UsageError("neither adversarial training nor RiFT is asked for")

    def check(self, train: int, validation: int) -> None:
        """Find out beforehand whether so many images are enough.

        Raises:
            UsageError: fewer images than a batch, or too few for the bound on the robust accuracy lost.
        """
        schedules = [config.schedule for config in (self.training, self.rift) if config is not None]
        batch = max(schedule.batch for schedule in schedules)
        if train < batch:
            raise UsageError(
                f"{train} images to train on are fewer than one batch of {batch}; give more images, or a smaller "
                "--robust-batch"
            )
        if self.rift is not None:
            self.rift.constraint.check(validation)


def make_robust(
    model: nn.Module,
    data: tuple[Images, Images, Images],
    config: RobustConfig,
    files: StageFiles,
    progress: Progress | None = None,
) -> tuple[list[Stage], RiftReport | None]:
    """Train the backbone against attacks, fine-tune it by RiFT, or both; `model` ends with the new weights.

    Args:
        model: on the device where it is to be trained.
        data: images to train on, to choose by, and held-out ones that accuracies are measured on.
        config: the stages.
        files: keeps every finished stage, and an epoch of one that is not: the same call again continues.
        progress: told of what is going on.

    Returns:
        The stages with clean and robust accuracy before and after, and all that RiFT found.

    Raises:
        NotRobustError: the model that RiFT is to start from does not withstand attacks at all.
        UsageError: labels out of range, or too few images.
        EdgettaError: training that diverged.
    """
    train, validation, held_out = data
    for images, labels in data:
        check_labels(model, images, labels)
    config.check(len(train[1]), len(validation[1]))

    tell = progress or (lambda stage, done, total, note: None)

    def measured() -> dict[str, Any]:
        def count(done: int, total: int) -> None:
            tell("attacking held-out images", done, total, "")

        found = evaluate(model, *held_out, config.attack, progress=count)
        assert found.robust is not None
        return asdict(Accuracies(float(found.clean.float().mean()), float(found.robust.float().mean())))

    stages: list[Stage] = []
    report = None
    if config.training is not None:
        before = Accuracies(**files.json("given", measured))
        facts = _train(model, data, config.training, files, tell)
        if config.rift is None:
            after = Accuracies(**files.json("adversarial", measured))
    if config.rift is not None:
        begun = time.perf_counter()
        report = run_rift(model, *data, files.path("rift"), config.rift, progress=tell)
        rows = {row.variant: row for row in report.rows}
        after, end = (Accuracies(rows[name].clean, rows[name].robust) for name in ("source", "rift"))
        stages.append(Stage("rift", after, end, time.perf_counter() - begun, _rift_facts(report)))
    if config.training is not None:
        stages.insert(0, Stage("adversarial_training", before, after, facts.pop("seconds"), facts))
    return stages, report


def _train(
    model: nn.Module,
    data: tuple[Images, Images, Images],
    config: AdversarialTraining,
    files: StageFiles,
    tell: Progress,
) -> dict[str, Any]:
    """Adversarial training, which leaves its weights in the model; returns its epochs and seconds."""
    begun = time.perf_counter()

    def trained() -> Mapping[str, Tensor]:
        history = adversarial_training(
            model,
            *data[:2],
            config,
            checkpoint=files.path("adversarial.checkpoint.safetensors"),
            progress=lambda done, total, note: tell("adversarial training", done, total, note),
        )
        epochs = [asdict(epoch) for epoch in history]
        files.json("adversarial.epochs", lambda: {"epochs": epochs, "seconds": time.perf_counter() - begun})
        return model.state_dict()

    model.load_state_dict(files.weights("adversarial", trained))
    return dict(files.json("adversarial.epochs", dict))


def _rift_facts(report: RiftReport) -> dict[str, Any]:
    row = next(row for row in report.rows if row.variant == "rift")
    return {
        "modules": list(row.modules),
        "alpha": row.alpha,
        "robust_loss": row.robust_loss,
        "robust_loss_upper": row.robust_loss_upper,
        "clean_gain_lower": row.clean_gain_lower,
        "validation_images": report.validation_images,
    }
