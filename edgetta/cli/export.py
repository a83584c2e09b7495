"""`edgetta export`: from a trained torch model to a bundle of programs, tested on the engines that are here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.adaptation_options import adapt_config, adaptation_options
from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.input_told import preprocessing_of, tell
from edgetta.cli.model_options import class_names, given_names, model_options, recipe_from
from edgetta.cli.settings import config_option
from edgetta.errors import BundleError, UsageError
from edgetta.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.export.input_check import InputCheck
    from edgetta.export.prepared import Prepared
    from edgetta.export.recipe import Derived, Recipe
    from edgetta.memory.cost_model import CostModel
    from edgetta.models import Model
    from edgetta.offline.network import Network
    from edgetta.rate_law import RateLaw
    from edgetta.sources.labelled import Pictures

CALIBRATION_IMAGES = 2000
"""So many images, spread over the calibration data, are enough: for what content explains of the statistics."""

EXAMPLES = """\b
Examples:
  edgetta export prepared/ -o bundle/
  edgetta export wrn40_2 --weights wrn.pt --calibration photos/ -o bundle.zip
  edgetta export timm:resnet18 --option pretrained=true --parts 5 -o bundle/
  edgetta export prepared_int8/ -o bundle/          (after `edgetta prepare --precision int8`)
  edgetta export net.py:build --input-size 64 --cuts stem,block2 -o bundle/
"""


@click.command(
    cls=two_tiers(
        *(
            "output",
            "weights",
            "num_classes",
            "input_size",
            "mean",
            "std",
            "resize",
            "option",
            "calibration",
            "classes",
        ),
        *("name", "parts", "precision", "measure", "overwrite", "quiet"),
    ),
    epilog=EXAMPLES,
)
@click.argument("model")
@click.option(
    "-o",
    "--output",
    metavar="BUNDLE",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder or .zip to write.",
)
@model_options
@click.option(
    "--calibration",
    metavar="DATA",
    help="Source images for statistics: a folder, an array, digits or cifar10-jpeg. Default synthetic ones.",
)
@click.option(
    "--meta",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Warmed-up meta-networks: the meta.safetensors of `edgetta prepare`.",
)
@click.option("--classes", metavar="NAMES", help="Class names in the order of the outputs: a,b,c or a text file.")
@click.option("--name", help="Of the bundle, for people; default the model's.")
@partial(adaptation_options, but=("adapt_affine", "batch_norm"))  # --bn is the form that the graphs take
@click.option(
    "--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Of weights that nobody gave."
)
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Measure what steps take, which `edgetta plan` and --budget need (the default; up to minutes for a large "
    "network), or leave it out.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that exists.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
@config_option
def command(**values: Any) -> None:
    """Write a model as a bundle that can be adapted on a device.

    MODEL is a built-in network (wrn40_2, resnet20, ...), timm:NAME, torchvision:NAME, path/file.py:function (this
    runs the file: only name files that you trust), a program path/model.pt2, or a folder that `edgetta prepare`
    wrote, which settles the options of the model, its cuts and its meta-networks.

    BUNDLE is a folder, or a zip where its name ends in .zip. Built-in networks are cut as published, others
    automatically; the cuts are printed and can be given with --cuts. Adaptation settings (--learning-rate and so on)
    become the bundle's defaults, which `edgetta run` can override.

    Next: `edgetta inspect BUNDLE`, or `edgetta run BUNDLE SOURCE`.
    """
    # What can fail cheaply comes before the derivation, which takes seconds to minutes.
    require("onnx", "`edgetta export`")
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.cli.export_report import show_export
    from edgetta.cli.tables import print_line
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.recipe import derive_recipe, load_trained

    show, output = not values["quiet"], values["output"]
    _check_output(output, values["overwrite"])
    config = adapt_config(AdaptConfig(), values)
    names = None if values["classes"] is None else class_names(values["classes"])
    prepared = _prepared(values)
    recipe = recipe_from(values["model"], values, values["seed"]) if prepared is None else prepared.recipe
    if recipe.batch_norm == "source":
        config = replace(config, batch_norm="source")
    model = load_trained(recipe)
    for note in model.notes if show else ():
        print_line(note, style="yellow", stderr=True)
    if prepared is None:
        recipe = replace(recipe, random_weights=model.origin is None)
    if names is not None and len(names) != model.num_classes:
        raise UsageError(f"--classes names {len(names)} classes, and the model has {model.num_classes}")
    material = _material(recipe, model, prepared, values, names)
    if material.check is not None:
        tell(material.check, show)
    derived = derive_recipe(recipe, model, material.batches())
    network = _at_start(derived, material)
    adaptable = derived.adaptable
    tested = write_bundle(
        output,
        Shipment(network.programs, adaptable.cuts, adaptable.batch_norm, network.content),
        name=values["name"] or _name_of(recipe.model),
        config=config,
        classes=names or material.classes or (None if prepared is None else prepared.classes),
        preprocessing=preprocessing_of(model),
        provenance=_provenance(derived, material, prepared),
        rate_law=_rate_law(prepared, config),
        accuracy_costs=None if prepared is None else prepared.costs,
        golden=material.golden(),
        overwrite=values["overwrite"],
        measure=partial(_measured, show=show) if values["measure"] else None,
    )
    if show:
        show_export(output, derived, material.facts(), tested)


@dataclass(frozen=True)
class _Material:
    """What the network's state is made of: warmed-up tensors, source images, or neither."""

    meta: tuple[Path, dict[str, Tensor]] | None
    pictures: Pictures | None
    calibration: str | None
    check: InputCheck | None = None  # of the source images
    classes: tuple[str, ...] | None = None  # as the folders of the source images are called, where they fit

    def batches(self) -> Iterator[Tensor] | None:
        """The source images in batches, where there are any."""
        from edgetta.offline.source_statistics import batches_of

        return None if self.pictures is None else batches_of(self.pictures.floats(), 64)

    def kind(self) -> str:
        if self.meta is not None:
            return "warm-up"
        return "synthetic images" if self.pictures is None else "source images"

    def told(self) -> str:
        if self.meta is not None:
            return f"of the warm-up ({self.meta[0]})"
        if self.pictures is None:
            better = "--calibration DATA with source images; one folder per class also checks the preprocessing"
            return f"of synthetic images, an approximation; better: {better}"
        skipped = f", {self.pictures.skipped_count:,} skipped" if self.pictures.skipped_count else ""
        return f"of {len(self.pictures):,} images from {self.calibration}{skipped}"

    def facts(self) -> list[tuple[str, str]]:
        """Lines for people."""
        named = f"{', '.join(self.classes)} (the folders of {self.calibration})" if self.classes else ""
        return [("classes", named)] * bool(named) + [("statistics", self.told())]

    def golden(self) -> Tensor | None:
        """Images for the self-test, spread over the source images; None takes synthetic ones."""
        from edgetta.export.bundle_writer import GOLDEN_IMAGES

        if self.pictures is None:
            return None
        count = len(self.pictures)
        rows = [number * count // GOLDEN_IMAGES for number in range(GOLDEN_IMAGES)]
        return self.pictures.floats()[rows if count >= GOLDEN_IMAGES else slice(None)]


def _measured(bundle: Path, show: bool) -> CostModel | None:
    """The cost model of a finished bundle, on the processor's engine; without one it still runs."""
    from edgetta.bundle import processor_engines
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_line
    from edgetta.errors import EdgettaError
    from edgetta.memory.calibration import measure_cost_model

    try:
        with progress_bar("measuring what steps take", show=show):
            return measure_cost_model(str(bundle), processor_engines())
    except EdgettaError as error:
        print_line(f"what steps take was not measured: {error}", style="yellow", stderr=True)
        return None


def _prepared(values: dict[str, Any]) -> Prepared | None:
    """What `edgetta prepare` left, where MODEL is such a folder.

    Raises:
        UsageError: another folder, an unfinished one, or options that the preparation has settled.
    """
    from edgetta.export.prepared import is_prepared, read_prepared

    folder = Path(values["model"])
    if not folder.is_dir():
        if "/" in values["model"] and not folder.suffix and ":" not in values["model"]:
            raise UsageError(f"MODEL {folder}: there is no such folder; give the one that `edgetta prepare` wrote")
        return None
    if not is_prepared(folder):
        raise UsageError(
            f"MODEL {folder} is a folder, but none that `edgetta prepare` wrote; name a model or such a one"
        )
    settled = given_names(values) + [f"--{name}" for name in ("calibration", "meta") if values[name] is not None]
    if settled:
        raise UsageError(
            f"{', '.join(settled)}: settled when {folder} was prepared; leave it out, or prepare again with it"
        )
    return read_prepared(folder)


def _material(
    recipe: Recipe,
    model: Model,
    prepared: Prepared | None,
    values: dict[str, Any],
    names: tuple[str, ...] | None,
) -> _Material:
    """Read warmed-up tensors and source images, and look at the images through the network's eyes.

    Raises:
        BundleError: warmed-up tensors that cannot be read.
        UsageError: meta-networks drawn at random that nobody warmed up, or no source images there.
    """
    from edgetta.cli.data import class_labels, source_images
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_line
    from edgetta.export.input_check import check_input
    from edgetta.export.prepared import read_meta

    path: Path | None = values["meta"] if prepared is None else prepared.meta
    if path is None and recipe.initialisation == "published":
        raise UsageError(
            "meta-networks with the published initialisation start at random and need the warm-up of `edgetta prepare`"
        )
    meta = None if path is None else (path, read_meta(path))
    if values["calibration"] is None:
        return _Material(meta, None, None)
    with progress_bar("reading", unit="images", show=not values["quiet"]) as update:
        pictures = source_images(values["calibration"], model.input_shape, CALIBRATION_IMAGES, update, model.resize)
    labels, classes, note = class_labels(values["calibration"], pictures, model.num_classes, names)
    if note:
        print_line(note, style="yellow", stderr=True)
    check = check_input(model, pictures.images, labels, classes, pictures.original)
    found = classes if names is None and check.sound else None
    return _Material(meta, pictures, values["calibration"], check, found)


def _at_start(derived: Derived, material: _Material) -> Network:
    """The network that ships, and what content explains of it where there are source images.

    Raises:
        BundleError: meta-networks that do not fit the model.
    """
    from edgetta.export.content import measure_content
    from edgetta.offline.source_statistics import with_source_statistics

    if material.meta is None:
        network = with_source_statistics(derived.network(), material.batches())
    else:
        path, tensors = material.meta
        try:
            network = derived.network().with_tensors(tensors)
        except ValueError as error:
            raise BundleError(
                f"{path} belongs to another model, other cuts or other meta-networks ({error}); give the options that "
                "it was prepared with, or export the prepared folder itself"
            ) from error
    batches = material.batches()
    if batches is None or material.pictures is None or len(material.pictures) < 2:
        return network
    return replace(network, content=measure_content(network.programs, batches))


def _provenance(derived: Derived, material: _Material, prepared: Prepared | None) -> dict[str, Any]:
    """Where everything came from. Paths are reduced to names: a bundle travels, and folders are nobody's business."""
    recipe = derived.recipe
    weights = None if derived.model.weights is None else Path(derived.model.weights).name
    told = replace(recipe, model=_name_of(recipe.model), weights=weights, ranges=None)
    report = {} if prepared is None else {"preparation": prepared.accuracies()}
    if material.check is not None and material.check.accuracy is not None:
        report["source_accuracy"] = {"accuracy": material.check.accuracy, "images": material.check.images}
    return {
        "recipe": told.to_json(),
        "weights": "random" if recipe.random_weights else weights or derived.model.origin,
        "cuts": derived.origin,
        "statistics": material.kind(),
        **report,
    }


def _rate_law(prepared: Prepared | None, config: AdaptConfig) -> RateLaw | None:
    """The law that was measured when the model was prepared.

    Raises:
        UsageError: it was measured for another objective than the bundle will have.
    """
    law = None if prepared is None else prepared.rate_law
    if prepared is None or law is None or config.learning_rate is not None:
        return law
    measured = (prepared.rates or {}).get("adaptation", {})
    for name in ("regulariser", "entropy_margin"):
        value = getattr(config, name)
        if measured.get(name, value) != value:
            raise UsageError(
                f"the rate law in {prepared.folder} was measured with {name} {measured[name]:g}, not {value:g}; "
                "prepare again, or give --learning-rate, which wins over the law"
            )
    return law


def _name_of(model: str) -> str:
    """A model's name without the folders before it."""
    return Path(model).name if "/" in model and not model.startswith(("timm:", "torchvision:")) else model.rstrip("/")


def _check_output(output: Path, overwrite: bool) -> None:
    """Before minutes of work: is there a place for the result?

    Raises:
        UsageError: no.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {parent}; create it or choose another one")
    if output.exists() and not overwrite and (output.is_file() or any(output.iterdir())):
        raise UsageError(f"{output} exists already; choose another path, or replace it with --overwrite")
