"""`edgetta prepare`: warm the meta-networks of a model up on its source data, and write down what an export needs."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.curvature_options import curvature_options, curvature_sizes, measured_rates, show_rates
from edgetta.cli.model_options import class_names, model_options, recipe_from
from edgetta.cli.settings import config_option
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.export.preparation import PreparationReport
    from edgetta.export.recipe import Derived
    from edgetta.offline.learning_rate.adaptation_law import AdaptationRates
    from edgetta.offline.warm_up import WarmUpConfig
    from edgetta.sources.labelled import Labelled

CHECKPOINT = "checkpoint.safetensors"

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


def _augmentation_options(function: Any) -> Any:
    for name, text in reversed(AUGMENTATION.items()):
        function = click.option(f"--{name}", metavar="X", type=click.FloatRange(0), help=text)(function)
    return function


EXAMPLES = """\b
Examples:
  edgetta prepare wrn40_2 --weights wrn.pt --data cifar10-jpeg -o prepared/
  edgetta prepare timm:resnet18 --option pretrained=true --epochs 3 \\
      --data photos/ -o prepared/
  edgetta prepare net.py:build --input-size 64 --data train.npz -o prepared/
  edgetta export prepared/ -o bundle/
"""


@click.command(epilog=EXAMPLES)
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
@click.option("--blur-sigma", metavar="LOW,HIGH", help="Range of the blur's sigma in pixels.")
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
@curvature_options
@click.option("--classes", metavar="NAMES", help="Class names in the order of the outputs: a,b,c or a text file.")
@model_options
@click.option("--overwrite", is_flag=True, help="Start again where PREPARED holds another preparation.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Get a trained model ready for the device: warm its meta-networks up on source data.

    MODEL is a built-in network (wrn40_2, resnet20, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), or a program path/model.pt2.

    DATA is a folder with one sub-folder per class, an .npz with images and labels, or a built-in name: digits,
    cifar10-jpeg. Images are read and resized as `edgetta run` does it on the device.

    The backbone stays as it is; the meta-networks are trained through the very segments that will ship. A checkpoint
    is written after every epoch: the same command again continues after Ctrl-C. PREPARED then holds the recipe, the
    weights, meta.safetensors and report.json, and is itself a MODEL for `edgetta export`.

    Without this verb, `edgetta export` makes a bundle that starts as feature alignment and needs no source data.
    """
    try:
        _prepare(values)
    except KeyboardInterrupt:
        folder = values["output"]
        if (folder / CHECKPOINT).is_file():
            kept = f"the epochs that are done are kept in {folder}; the same command again continues there"
            click.echo(f"edgetta: {kept}", err=True)
        raise


def _prepare(values: dict[str, Any]) -> None:
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_line
    from edgetta.export import prepared
    from edgetta.export.preparation import check, prepare
    from edgetta.export.recipe import derive_recipe, has_given_weights, load

    config = _warm_up_config(values) if values["warm_up"] else None
    sizes = curvature_sizes(values)
    folder: Path = values["output"]
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"--output {folder}: there is no folder {folder.absolute().parent}; create it first")
    recipe = recipe_from(values["model"], values, values["seed"])
    model = load(recipe)
    show = not values["quiet"]
    if show and not has_given_weights(recipe):
        print_line(f"{recipe.model} has random weights: give trained ones with --weights", style="yellow", stderr=True)
    names = None if values["classes"] is None else class_names(values["classes"])
    with progress_bar("reading", unit="images", show=show) as update:
        train, held_out = _data(values, model.input_shape, names, update)
    classes = names or train.classes
    if classes is not None and len(classes) != model.num_classes:
        raise UsageError(
            f"{values['data']} has {len(classes)} classes and {recipe.model} has {model.num_classes}; give weights "
            "for these classes, or all names in the order of the outputs with --classes"
        )
    check(recipe, model.num_classes, train, held_out, config)
    derived = derive_recipe(recipe, model)
    settings = _settings(values, config, train, held_out)
    checkpoint = prepared.begin(folder, derived, classes, settings, overwrite=values["overwrite"])
    if show and checkpoint.is_file():
        print_line(f"continuing from {checkpoint}", stderr=True)
    with progress_bar("warming up", unit="steps", show=show) as update:
        network, report = prepare(
            derived,
            train,
            held_out,
            config,
            checkpoint,
            lambda done, total, loss: update(done, total, f"loss {loss:.3f}"),
        )
    rates = measured_rates(network, held_out, sizes, values["seed"], show) if sizes else None
    prepared.finish(folder, network.state_dict(), report, None if rates is None else rates.to_json())
    if show:
        _show(values, derived, train, report, rates)


def _data(
    values: dict[str, Any], input_shape: tuple[int, int, int], names: tuple[str, ...] | None, update: Any
) -> tuple[Labelled, Labelled]:
    from edgetta.cli.data import labelled_data

    return labelled_data(
        values["data"],
        input_shape,
        held_out=values["held_out"],
        seed=values["seed"],
        classes=names,
        limit=values["limit"],
        progress=update,
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
    values: dict[str, Any], config: WarmUpConfig | None, train: Labelled, held_out: Labelled
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
        "warm_up": None if config is None else asdict(config),
    }


def _show(
    values: dict[str, Any], derived: Derived, train: Labelled, report: PreparationReport, rates: AdaptationRates | None
) -> None:
    from edgetta.cli.tables import print_facts, print_line, print_table, seconds_text

    skipped = [f"{train.skipped_count:,} skipped"] if train.skipped_count else []
    trained = [f"{report.steps:,} steps, last loss {report.final_loss:.3f}"] if report.final_loss is not None else []
    images = [f"{report.images:,} to train on, {report.held_out:,} held out", *skipped]
    facts = [
        ("model", f"{derived.recipe.model}, {derived.model.num_classes} classes"),
        ("parts", f"{len(derived.adaptable.parts)}, cuts {derived.origin}: {', '.join(derived.adaptable.cuts)}"),
        ("images", "; ".join(images)),
        ("warm-up", "; ".join([*trained, seconds_text(report.seconds)])),
        *((f"  {frame.name}", frame.reason) for frame in train.skipped[:5]),
    ]
    print_facts(facts)
    rows = [("the network as trained", report.source_accuracy)]
    if report.final_loss is None:
        rows.append(("with meta-networks", report.accuracy_after))
    else:
        rows += [
            ("with meta-networks, before warm-up", report.accuracy_before),
            ("after warm-up", report.accuracy_after),
        ]
    rows.append(("the same with running statistics, as for single frames", report.accuracy_running))
    print_table(
        ("held-out accuracy, adaptation off", "%"),
        [(name, f"{100 * accuracy:.2f}") for name, accuracy in rows],
        left=("held-out accuracy, adaptation off",),
    )
    if rates is not None:
        show_rates(rates)
    print_line(f"next: edgetta export {shlex.quote(str(values['output']))} -o bundle/", style="green")
