"""The stages of a preparation that train the backbone: their options, and what these describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.cli.attack_options import number, threat_from, threat_options

if TYPE_CHECKING:
    from edgetta.offline.attack import AdversarialTraining, Threat
    from edgetta.offline.robust_stages import RobustConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])


def training_options(function: _Function) -> _Function:
    """Add the options of adversarial training to a click command."""
    options = [
        click.option(
            "--adversarial-training",
            is_flag=True,
            help="First train MODEL against attacks: for one that is not robust yet.",
        ),
        click.option(
            "--method",
            type=click.Choice(["pgd", "trades"]),
            default="pgd",
            show_default=True,
            help="Of that training.",
        ),
        click.option(
            "--training-epochs",
            metavar="N",
            type=click.IntRange(1),
            default=110,
            show_default=True,
            help="Of that training.",
        ),
        click.option(
            "--training-rate",
            metavar="RATE",
            default="0.1",
            show_default=True,
            help="Its rate, a tenth after 91 and 95 %.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def constraint_options(function: _Function) -> _Function:
    """Add the options that say what RiFT may lose, and how closely it looks, to a click command."""
    options = [
        click.option(
            "--candidates",
            metavar="N",
            type=click.IntRange(1),
            default=3,
            show_default=True,
            help="Least critical modules to fine-tune; the best on validation images is taken (1: the paper).",
        ),
        click.option(
            "--criticality-images",
            metavar="N",
            type=click.IntRange(1),
            default=1000,
            show_default=True,
            help="Training images that criticality is measured on.",
        ),
        click.option(
            "--max-loss",
            metavar="POINTS",
            default="1",
            show_default=True,
            help="Points of robust accuracy that may be lost: bound at 95 % confidence.",
        ),
        click.option(
            "--validation",
            metavar="SHARE",
            type=float,
            default=0.1,
            show_default=True,
            help="Share of each class of the training images that epochs and alpha are chosen on.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def robust_options(function: _Function) -> _Function:
    """Add both stages, as `edgetta prepare` has them, to a click command."""
    options = [
        training_options,
        click.option(
            "--rift",
            is_flag=True,
            help="Fine-tune the modules that robustness depends on least, within --max-loss: for a robust MODEL.",
        ),
        threat_options,
        click.option(
            "--attack-steps",
            metavar="N",
            type=click.IntRange(1),
            default=20,
            show_default=True,
            help="Of PGD, for robust accuracy.",
        ),
        click.option(
            "--rift-epochs", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="Of fine-tuning."
        ),
        click.option("--rift-rate", metavar="RATE", default="0.001", show_default=True, help="Of fine-tuning."),
        constraint_options,
        click.option(
            "--robust-batch",
            metavar="N",
            type=click.IntRange(1),
            default=128,
            show_default=True,
            help="Images per step of adversarial training and of RiFT.",
        ),
        click.option(
            "--device", default="cpu", show_default=True, help="Where these two stages run: cpu, cuda or cuda:1."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def adversarial_training_from(
    values: Mapping[str, Any], threat: Threat, batch: int, flip: float
) -> AdversarialTraining | None:
    """The training that the options describe; None without `--adversarial-training`.

    Raises:
        UsageError: a value out of its range.
    """
    from edgetta.offline.attack import AdversarialTraining
    from edgetta.offline.crop_and_flip import CropAndFlip
    from edgetta.offline.training import Schedule

    if not values["adversarial_training"]:
        return None
    epochs = values["training_epochs"]
    schedule = Schedule(
        epochs,
        batch,
        number("--training-rate", values["training_rate"]),
        decay_at=(round(epochs * 100 / 110), round(epochs * 105 / 110)),
        augmentation=CropAndFlip(flip=flip),
        seed=values["seed"],
    )
    return AdversarialTraining(values["method"], threat, schedule=schedule)


def robust_config(values: Mapping[str, Any]) -> RobustConfig | None:
    """What `edgetta prepare` does to the backbone; None where neither stage is asked for.

    Raises:
        UsageError: a value out of its range.
    """
    from edgetta.offline.attack import PGD
    from edgetta.offline.crop_and_flip import CropAndFlip
    from edgetta.offline.rift import Constraint, CriticalityConfig, RiftConfig, fine_tuning
    from edgetta.offline.robust_stages import RobustConfig

    if not (values["adversarial_training"] or values["rift"]):
        return None
    attack = PGD(threat_from(values), values["attack_steps"])
    flip = CropAndFlip().flip if values["flip"] is None else values["flip"]
    rift = RiftConfig(
        attack=attack,
        criticality=CriticalityConfig(finalists=max(3, values["candidates"]), seed=values["seed"]),
        criticality_images=values["criticality_images"],
        schedule=fine_tuning(
            values["rift_epochs"],
            values["seed"],
            learning_rate=number("--rift-rate", values["rift_rate"]),
            batch=values["robust_batch"],
            augmentation=CropAndFlip(flip=flip),
        ),
        candidates=values["candidates"],
        constraint=Constraint(number("--max-loss", values["max_loss"]) / 100),
        seed=values["seed"],
    )
    training = adversarial_training_from(values, attack.threat, values["robust_batch"], flip)
    return RobustConfig(attack, training, rift if values["rift"] else None)
