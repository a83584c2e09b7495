"""`edgetta prepare`: the offline way from a trained model to what an export needs, stage by stage."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.cost_options import check_cost_packages, cost_images, cost_options, measured_costs
from edgetta.cli.curvature_options import check_curvature, curvature_options, curvature_sizes, measured_rates
from edgetta.cli.help_tiers import SettingOption, two_tiers
from edgetta.cli.input_told import tell
from edgetta.cli.model_options import class_names, model_options, recipe_from
from edgetta.cli.robust_options import robust_config, robust_options
from edgetta.cli.settings import config_option
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.models import Model
    from edgetta.offline.rift import RiftReport
    from edgetta.offline.robust_stages import RobustConfig
    from edgetta.offline.stage import Stage
    from edgetta.offline.stage_files import StageFiles
    from edgetta.offline.warm_up import WarmUpConfig
    from edgetta.sources.labelled import Labelled

# Fields of `Augmentation` that are probabilities or strengths: option, help.
AUGMENTATION = {
    "jitter": "Probability of colour jitter.",
    "brightness": "Strength of its brightness: a factor in [1 - X, 1 + X].",
    "contrast": "Strength of its contrast.",
    "saturation": "Strength of its saturation.",
    "hue": "Strength of its hue, as a share of the colour circle.",
    "blur": "Probability of blur.",
    "grey": "Probability of grey.",
    "flip": "Probability of a left-right flip (leave at 0 for digits and text).",
}


def _augmentation(name: str) -> Any:
    from edgetta.offline.augment import Augmentation

    return getattr(Augmentation(), name)


def _augmentation_options(function: Any) -> Any:
    for name, text in reversed(AUGMENTATION.items()):
        option = click.option(
            f"--{name}",
            cls=SettingOption,
            setting=partial(_augmentation, name),
            metavar="X",
            type=click.FloatRange(0),
            help=text,
        )
        function = option(function)
    return function


EXAMPLES = """\b
Examples:
  edgetta prepare wrn40_2 --weights wrn.pt --data cifar10-jpeg -o prepared/
  edgetta prepare timm:resnet18 --option pretrained=true --epochs 3 \\
      --data photos/ -o prepared/
  edgetta prepare net.py:build --input-size 64 --data train.npz -o prepared/
  edgetta prepare resnet18 --weights at.pt --data cifar10-jpeg --rift \\
      --curvature -o prepared/
  torchrun --nproc-per-node 4 -m edgetta prepare resnet18 --device cuda \\
      --data data/cifar-10-batches-bin --adversarial-training --rift -o prepared/
  edgetta export prepared/ -o bundle/
"""


@click.command(
    cls=two_tiers(
        *(
            "data",
            "output",
            "epochs",
            "held_out",
            "limit",
            "classes",
            "weights",
            "input_size",
            "mean",
            "std",
            "resize",
        ),
        *("option", "adversarial_training", "rift", "curvature", "costs", "overwrite", "quiet"),
    ),
    epilog=EXAMPLES,
)
@click.argument("model")
@click.option("--data", metavar="DATA", required=True, help="Labelled source images; see above.")
@click.option(
    "-o", "--output", metavar="PREPARED", required=True, type=click.Path(path_type=Path), help="The folder to fill."
)
@click.option("--warm-up/--no-warm-up", default=True, help="Train the meta-networks (the default), or only measure.")
@click.option("--epochs", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="Of the warm-up.")
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), default=64, show_default=True, help="Images per warm-up step."
)
@click.option("--learning-rate", metavar="RATE", type=float, default=5e-2, show_default=True, help="Of SGD.")
@click.option("--momentum", metavar="M", type=float, default=0.9, show_default=True, help="Of SGD.")
@click.option(
    "--ramp-epochs",
    metavar="X",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="The rate rises linearly for so many epochs (at most a quarter of all).",
)
@click.option(
    "--decay-at",
    metavar="A,B,C",
    default="0.3,0.6,0.8",
    show_default=True,
    help="Shares of all epochs to decay after.",
)
@click.option("--decay", metavar="X", type=float, default=0.2, show_default=True, help="The rate's factor there.")
@_augmentation_options
@click.option(
    "--blur-sigma",
    cls=SettingOption,
    setting=partial(_augmentation, "blur_sigma"),
    metavar="LOW,HIGH",
    help="Range of the blur's sigma in pixels.",
)
@click.option(
    "--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Of everything that is drawn."
)
@click.option(
    "--held-out",
    metavar="SHARE",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of each class to measure on; digits and cifar10-jpeg have test images of their own.",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(2), help="At most N images, spread over DATA: a quick trial."
)
@robust_options
@curvature_options
@cost_options
@click.option("--classes", metavar="NAMES", help="Class names in the order of the outputs: a,b,c or a text file.")
@model_options
@click.option("--overwrite", is_flag=True, help="Start again where PREPARED holds another preparation.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Get a trained model ready for the device: the offline way, as one job with one report.

    MODEL is a built-in network (wrn40_2, resnet20, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), or a program path/model.pt2.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, the binary version of CIFAR-10 or
    CIFAR-100, Tiny-ImageNet as published, or a built-in name: digits, cifar10-jpeg. Images are read and resized as
    `edgetta run` does it on the device.

    Stages, in this order: adversarial training and RiFT change the backbone, where they are asked for; meta-networks
    are put beside it and warmed up through the very network that will ship; the curvature says which learning rate
    each batch size bears; what the choices of `edgetta plan` cost in accuracy is measured. The report has the
    accuracies before and after each.

    Finished stages are kept, and the last epoch of one that is not: the same command again continues after Ctrl-C.
    PREPARED then holds the recipe, the weights, meta.safetensors, report.json and report.html, and is itself a MODEL
    for `edgetta export`. Under `torchrun` the processes share the work and give what one gives.

    Without this verb, `edgetta export` makes a bundle that starts as feature alignment and needs no source data.
    """
    from edgetta.offline.curvature import launched_processes

    with launched_processes() as processes:
        try:
            _prepare(values, first=processes.rank == 0)
        except KeyboardInterrupt:
            folder = values["output"]
            if processes.rank == 0 and _kept(folder):
                kept = f"what is done is kept in {folder}; the same command again continues there"
                click.echo(f"edgetta: {kept}", err=True)
            raise


def _prepare(values: dict[str, Any], first: bool) -> None:
    """All stages; only the first process of several shows and writes."""
    from edgetta.cli.device import torch_device
    from edgetta.cli.prepare_report import page, show
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_line
    from edgetta.export import prepared
    from edgetta.export.input_check import check_input
    from edgetta.export.preparation import calibration, check, prepare
    from edgetta.export.recipe import derive_recipe, load, load_trained
    from edgetta.offline.stage import Stage

    config = _warm_up_config(values) if values["warm_up"] else None
    robust, sizes = robust_config(values), curvature_sizes(values)
    device = torch_device(values["device"])
    folder: Path = values["output"]
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"--output {folder}: there is no folder {folder.absolute().parent}; create it first")
    recipe = recipe_from(values["model"], values, values["seed"])
    # What is trained first may start at random.
    model = load_trained(recipe) if robust is None or robust.training is None else load(recipe)
    loud = first and not values["quiet"]
    recipe = replace(recipe, random_weights=model.origin is None and (robust is None or robust.training is None))
    check_cost_packages(values, model.input_shape)
    names = None if values["classes"] is None else class_names(values["classes"])
    train, held_out = _data(values, model, names, loud)
    classes = names or train.classes
    if classes is not None and len(classes) != model.num_classes:
        raise UsageError(
            f"{values['data']} has {len(classes)} classes and {recipe.model} has {model.num_classes}; give weights "
            "for these classes, or all names in the order of the outputs with --classes"
        )
    check(recipe, model.num_classes, train, held_out, config)
    if first and model.origin is not None:
        tell(check_input(model, held_out.images, held_out.labels, classes), loud)
    check_curvature(held_out, sizes)
    parts = None if robust is None else _robust_parts(values, robust, train)
    derived = derive_recipe(recipe, model, calibration(train))
    cost_count = cost_images(values, held_out)
    settings = {**_settings(values, config, robust, train, held_out), "cost_images": cost_count}
    files = prepared.begin(folder, derived, classes, settings, overwrite=values["overwrite"])
    if loud and _kept(folder):
        print_line(f"continuing from what is done in {folder}", stderr=True)
    stages: list[Stage] = []
    rift: RiftReport | None = None
    if robust is not None and parts is not None:
        model.module.to(device)
        stages, rift = _robust_stages(model, parts, held_out, robust, files, loud)
        model.module.to("cpu")
        # The programs hold weights: they are derived anew, cut where they were.
        again = replace(derived.recipe, parts=None, cuts=derived.adaptable.cuts, ranges=None)
        derived = replace(derive_recipe(again, model, calibration(train)), origin=derived.origin)
        if first:
            prepared.replace_weights(folder, model.module)
    with progress_bar("warming up", unit="steps", show=loud) as update:
        network, report = prepare(
            derived,
            train,
            held_out,
            config,
            files,
            lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
        )
    report = replace(report, stages=(*stages, *report.stages))
    rates = None
    if sizes:
        rates = files.json("rates", lambda: measured_rates(network, held_out, sizes, values["seed"], loud))
        left = report.stages[-1].after  # weights and accuracies stay as they are
        report = replace(report, stages=(*report.stages, Stage("curvature", left, left, rates["seconds"])))
    findings = {} if rift is None else {"rift": rift.to_json()}
    costs = measured_costs(network, held_out, cost_count, rates, values["seed"], files, loud) if cost_count else None
    if costs is not None:
        findings["costs"] = costs.to_json()
    if first:
        text = page(derived, report, rift, rates, costs)
        state, ranges = network.tensors(), derived.recipe.ranges
        prepared.finish(folder, state, report, rates, ranges=ranges, findings=findings, page=text)
    if loud:
        show(folder, derived, train, report, rates, costs)


def _kept(folder: Path) -> bool:
    """Whether something of a preparation that is not finished lies in its folder."""
    from edgetta.export.prepared import STAGES
    from edgetta.offline.stage_files import SETTINGS

    stages = folder / STAGES
    return stages.is_dir() and any(path.name != SETTINGS for path in stages.iterdir())


def _robust_parts(values: dict[str, Any], robust: RobustConfig, train: Labelled) -> tuple[Labelled, Labelled]:
    """Images to train the backbone on, and others to choose epochs and alpha by.

    Raises:
        UsageError: too few of either.
    """
    from edgetta.sources.labelled import split

    fit, validation = split(train, values["validation"], values["seed"])
    robust.check(len(fit), len(validation))
    return fit, validation


def _robust_stages(
    model: Model,
    parts: tuple[Labelled, Labelled],
    held_out: Labelled,
    robust: RobustConfig,
    files: StageFiles,
    loud: bool,
) -> tuple[list[Stage], RiftReport | None]:
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.robust_stages import make_robust

    fit, validation = parts
    with progress_bar("backbone", show=loud) as update:
        return make_robust(
            model.module,
            ((fit.images, fit.labels), (validation.images, validation.labels), (held_out.images, held_out.labels)),
            robust,
            files,
            lambda stage, done, total, note: update(done, total, f"{stage} {note}".strip()),
        )


def _data(
    values: dict[str, Any], model: Model, names: tuple[str, ...] | None, loud: bool
) -> tuple[Labelled, Labelled]:
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.training_data import training_data

    with progress_bar("reading", unit="images", show=loud) as update:
        return training_data(
            values["data"],
            model.input_shape,
            held_out=values["held_out"],
            seed=values["seed"],
            classes=names,
            limit=values["limit"],
            progress=update,
            resize=model.resize,
        )


def _warm_up_config(values: dict[str, Any]) -> WarmUpConfig:
    """The settings of the warm-up.

    Raises:
        UsageError: a value out of its range.
    """
    from edgetta.offline.augment import Augmentation
    from edgetta.offline.warm_up import WarmUpConfig

    strengths: dict[str, Any] = {name: values[name] for name in AUGMENTATION if values[name] is not None}
    if values["blur_sigma"] is not None:
        sigma = _numbers("--blur-sigma", values["blur_sigma"])
        if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
            raise UsageError(f"--blur-sigma {values['blur_sigma']}: write two numbers above 0, the smaller first")
        strengths["blur_sigma"] = sigma
    for name in ("jitter", "blur", "grey", "flip"):
        if strengths.get(name, 0) > 1:
            raise UsageError(f"--{name} is a probability, at most 1, not {strengths[name]:g}")
    if not values["learning_rate"] > 0 or not 0 <= values["momentum"] < 1:
        raise UsageError("--learning-rate must be above 0, and --momentum at least 0 and below 1")
    return WarmUpConfig(
        epochs=values["epochs"],
        batch=values["batch"],
        learning_rate=values["learning_rate"],
        momentum=values["momentum"],
        ramp_epochs=values["ramp_epochs"],
        decay_at=_numbers("--decay-at", values["decay_at"]),
        decay=values["decay"],
        augmentation=Augmentation(**strengths),
        seed=values["seed"],
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise UsageError(f"{option} {text}: write numbers separated by commas") from error


def _settings(
    values: dict[str, Any],
    config: WarmUpConfig | None,
    robust: RobustConfig | None,
    train: Labelled,
    held_out: Labelled,
) -> dict[str, Any]:
    """What the result depends on beside the model: the same settings again continue, others do not."""
    digest = hashlib.sha256()
    for data in (train, held_out):
        for tensor in (data.images, data.labels):
            digest.update(tensor.numpy().data)
    return {
        "data": values["data"],
        "images": len(train),
        "held_out": len(held_out),
        "data_sha256": digest.hexdigest(),
        "robust": None if robust is None else {**asdict(robust), "validation": values["validation"]},
        "warm_up": None if config is None else asdict(config),
        "curvature": list(curvature_sizes(values)),
    }
