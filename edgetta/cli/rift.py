"""`edgetta rift`: fine-tune the module that robustness depends on least, as far as robustness allows."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.attack_options import number, threat_from, threat_options
from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.model_options import model_options, recipe_from
from edgetta.cli.robust_options import adversarial_training_from, constraint_options, training_options
from edgetta.cli.settings import config_option

if TYPE_CHECKING:
    from edgetta.models import Model
    from edgetta.offline.attack import AdversarialTraining
    from edgetta.offline.attack.evaluation import Images
    from edgetta.offline.rift import RiftConfig, RiftReport

EXAMPLES = """\b
Examples:
  edgetta rift resnet18 --weights at.pt --data cifar10-jpeg -o rift/
  edgetta rift resnet18 --weights at.pt --data photos/ --controls -o rift/
  edgetta rift resnet18 --data data/cifar-10-batches-bin --device cuda \\
      --adversarial-training --corrupted data/CIFAR-10-C -o rift/
  torchrun --nproc-per-node 4 -m edgetta rift wrn34_10 --device cuda ...
  edgetta prepare resnet18 --weights rift/model.safetensors --data photos/ ...
"""


@click.command(
    cls=two_tiers(
        *("data", "out", "adversarial_training", "method", "max_loss", "epochs", "held_out", "corrupted", "limit"),
        *("device", "weights", "input_size", "mean", "std", "option", "overwrite", "quiet"),
    ),
    epilog=EXAMPLES,
)
@click.argument("model")
@click.option("--data", metavar="DATA", required=True, help="Labelled images; see above.")
@click.option(
    "-o", "--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="For results and weights."
)
@threat_options
@click.option("--steps", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="Of PGD.")
@click.option(
    "--restarts", metavar="N", type=click.IntRange(1), default=1, show_default=True, help="Random starts of PGD."
)
@training_options
@click.option(
    "--schedule",
    type=click.Choice(["fast", "published"]),
    default="fast",
    show_default=True,
    help="How criticality is measured: ours, or as in the released code.",
)
@constraint_options
@click.option("--re-attack", is_flag=True, help="Attack the least critical modules anew at their perturbed weights.")
@click.option("--epochs", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="Of fine-tuning.")
@click.option("--learning-rate", metavar="RATE", default="0.001", show_default=True, help="Of fine-tuning.")
@click.option("--batch", metavar="N", type=click.IntRange(1), default=128, show_default=True, help="Images per step.")
@click.option(
    "--flip",
    metavar="X",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Probability of a left-right flip (0 for digits and text).",
)
@click.option(
    "--recalibrate",
    is_flag=True,
    help="After fine-tuning, take BatchNorm statistics anew from clean images (they are left alone otherwise).",
)
@click.option(
    "--controls", is_flag=True, help="Also measure what RiFT is compared with: BatchNorm alone, other modules, all."
)
@click.option(
    "--held-out",
    metavar="SHARE",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of each class for the test at the end, where DATA has no test images of its own.",
)
@click.option("--test-images", metavar="N", type=click.IntRange(1), help="At most N images for the test.")
@click.option(
    "--corrupted",
    metavar="1-5|DIR",
    help="Also test under corruptions: 15 made at this severity, or a published -C set.",
)
@click.option("--limit", metavar="N", type=click.IntRange(2), help="At most N images of DATA: a quick trial.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@click.option("--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Of all draws.")
@model_options
@click.option("--overwrite", is_flag=True, help="Start again where DIR holds a job with other settings.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Raise the accuracy of an adversarially trained model without giving up its robustness (RiFT, ICCV 2023).

    The modules that robustness depends on least are fine-tuned on clean images, one at a time; weights then move from
    the trained towards the fine-tuned ones as far as a bound on the lost robustness allows, and the best module is
    kept. Nothing is chosen on test images.

    MODEL is a built-in network (resnet18, wrn34_10, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), or a program path/model.pt2.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, the binary version of CIFAR-10 or
    CIFAR-100, Tiny-ImageNet as published, or a built-in name: digits, cifar10-jpeg.

    DIR then holds model.safetensors (weights for `edgetta prepare`), report.json and plots. Every stage is kept: the
    same command again continues after Ctrl-C. Under `torchrun` the processes share the work.
    """
    from edgetta.cli.device import torch_device
    from edgetta.export.recipe import load, load_trained
    from edgetta.offline.curvature import launched_processes

    with launched_processes() as processes:
        show = processes.rank == 0 and not values["quiet"]
        device = torch_device(values["device"])
        config = _config(values)
        training = adversarial_training_from(values, config.attack.threat, values["batch"], values["flip"])
        recipe = recipe_from(values["model"], values, values["seed"])
        # What is trained first may start at random.
        model = load_trained(recipe) if training is None else load(recipe)
        train, validation, test, corrupted = _data(values, model, show)
        model.module.to(device)
        try:
            _train_first(values, model, training, train, validation, show)
            report = _rift(values, model, config, training, (train, validation, test), corrupted, show)
        except KeyboardInterrupt:
            if processes.rank == 0 and values["out"].is_dir():
                click.echo(f"edgetta: what is done is kept in {values['out']}; the same command continues", err=True)
            raise
        if processes.rank == 0:
            drawn = _draw(report, values["out"], values["model"])
            if show:
                _show(values, report, drawn)


def _config(values: dict[str, Any]) -> RiftConfig:
    """The settings of the job.

    Raises:
        UsageError: a value out of its range.
    """
    from edgetta.offline.attack import PGD
    from edgetta.offline.crop_and_flip import CropAndFlip
    from edgetta.offline.rift import CONTROLS, Constraint, CriticalityConfig, RiftConfig, fine_tuning

    return RiftConfig(
        attack=PGD(threat_from(values), values["steps"], restarts=values["restarts"]),
        criticality=CriticalityConfig(
            values["schedule"],
            finalists=max(3, values["candidates"]),
            re_attack=values["re_attack"],
            seed=values["seed"],
        ),
        criticality_images=values["criticality_images"],
        schedule=fine_tuning(
            values["epochs"],
            values["seed"],
            learning_rate=number("--learning-rate", values["learning_rate"]),
            batch=values["batch"],
            augmentation=CropAndFlip(flip=values["flip"]),
        ),
        recalibrate=values["recalibrate"],
        candidates=values["candidates"],
        constraint=Constraint(number("--max-loss", values["max_loss"]) / 100),
        controls=CONTROLS if values["controls"] else (),
        seed=values["seed"],
    )


def _data(values: dict[str, Any], model: Model, show: bool) -> tuple[Images, Images, Images, dict[str, Images]]:
    """Training, validation and test images, and the latter under corruptions."""
    from edgetta.cli.corrupted import corrupted_images
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.training_data import training_data
    from edgetta.sources.labelled import check_classes, split

    shape = model.input_shape
    with progress_bar("reading", unit="images", show=show) as update:
        everything, test = training_data(
            values["data"],
            shape,
            held_out=values["held_out"],
            seed=values["seed"],
            limit=values["limit"],
            progress=update,
            resize=model.resize,
        )
    everything, test = (check_classes(data, model.num_classes) for data in (everything, test))
    train, validation = split(everything, values["validation"], values["seed"])
    if values["test_images"] is not None:
        test = test.shuffled(values["seed"], values["test_images"])
    corrupted: dict[str, Images] = {}
    if values["corrupted"] is not None:
        with progress_bar("corrupting", unit="corruptions", show=show) as update:
            corrupted = corrupted_images(values["corrupted"], test, shape, values["test_images"], update, model.resize)
    return (
        (train.images, train.labels),
        (validation.images, validation.labels),
        (test.images, test.labels),
        corrupted,
    )


def _train_first(
    values: dict[str, Any],
    model: Model,
    training: AdversarialTraining | None,
    train: Images,
    validation: Images,
    show: bool,
) -> None:
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.surface_options import make_folder
    from edgetta.offline.attack import adversarial_training

    if training is None:
        return
    folder = values["out"] / "adversarial"
    make_folder(folder)
    with progress_bar("adversarial training", unit="steps", show=show) as update:
        adversarial_training(
            model.module, train, validation, training, checkpoint=folder / "training.safetensors", progress=update
        )


def _rift(
    values: dict[str, Any],
    model: Model,
    config: RiftConfig,
    training: AdversarialTraining | None,
    data: tuple[Images, Images, Images],
    corrupted: dict[str, Images],
    show: bool,
) -> RiftReport:
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.rift import run_rift

    described = {name: values[name] for name in ("model", "weights", "data", "corrupted")}
    described["adversarial_training"] = None if training is None else asdict(training)
    with progress_bar("RiFT", show=show) as update:
        return run_rift(
            model.module,
            *data,
            values["out"],
            config,
            corrupted=corrupted,
            description=described,
            overwrite=values["overwrite"],
            progress=lambda stage, done, total, note: update(done, total, f"{stage} {note}".strip()),
        )


def _draw(report: RiftReport, out: Path, title: str) -> bool:
    from edgetta.errors import MissingDependencyError
    from edgetta.offline.rift.plot import draw_criticality, draw_interpolation

    try:
        draw_criticality(report.criticality, title=title).savefig(out / "criticality.svg")
        draw_interpolation(report.interpolations["rift"], title=title).savefig(out / "interpolation.svg")
    except MissingDependencyError:
        return False
    return True


def _show(values: dict[str, Any], report: RiftReport, drawn: bool) -> None:
    from edgetta.cli.tables import print_facts, print_line, print_table, seconds_text

    found = report.criticality
    diverged = [score.name for score in found.scores if score.diverged]
    print_facts(
        [
            ("model", values["model"]),
            ("test images", f"{report.test_images:,}; {report.validation_images:,} for validation"),
            ("criticality", f"{found.images:,} images, {seconds_text(found.seconds)}"),
            ("least critical", f"{found.least.name}: the robust loss rises by {found.least.rise:.3g}"),
            ("most critical", f"{found.most.name}: by {found.most.rise:.3g}"),
            *([("skipped", f"{', '.join(found.skipped)}: no gradient")] if found.skipped else []),
            *([("diverged", f"{', '.join(diverged)}: never chosen")] if diverged else []),
        ]
    )
    rows = [
        (
            row.variant,
            ", ".join(row.modules) or "-",
            "-" if row.alpha is None else f"{row.alpha:g}",
            f"{100 * row.clean:.2f}",
            "-" if row.corrupted is None else f"{100 * row.corrupted:.2f}",
            f"{100 * row.robust:.2f}",
            f"{100 * row.robust_loss:+.2f}",
            f"{100 * row.robust_loss_upper:+.2f}",
        )
        for row in report.rows
    ]
    columns = ("variant", "fine-tuned", "alpha", "clean %", "corrupted %", "robust %", "robust lost", "at most (95 %)")
    print_table(columns, rows, left=("variant", "fine-tuned"))
    if not report.interpolations["rift"].alpha:
        print_line("no point on the way was better within the bound: the weights are as trained", style="yellow")
    pictures = "" if drawn else " (no pictures: pip install 'edgetta[offline]')"
    weights = shlex.quote(str(values["out"] / "model.safetensors"))
    print_line(f"next: edgetta prepare {values['model']} --weights {weights} ...{pictures}", style="green")
