"""`edgetta export`: from a trained torch model to a bundle of programs, tested on the engines that are here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.adaptation_options import adapt_config, adaptation_options
from edgetta.cli.model_options import class_names, given_names, model_options, recipe_from
from edgetta.cli.settings import config_option
from edgetta.errors import BundleError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.bundle import SelfTest
    from edgetta.export.prepared import Prepared
    from edgetta.export.recipe import Derived, Recipe
    from edgetta.memory.cost_model import CostModel
    from edgetta.models import Model
    from edgetta.offline.network import Network
    from edgetta.rate_law import RateLaw
    from edgetta.sources.labelled import Pictures

CALIBRATION_IMAGES = 1024
"""So many images, spread over the calibration data, are enough for statistics per channel."""

ORIGINS = {
    "given": "as given",
    "published": "as published",
    "inferred": "inferred from the published memory figures",
    "by stages": "by stages, shallow ones finer, as published networks are cut",
    "automatic": "automatic, shallow layers finer",
}

EXAMPLES = """\b
Examples:
  edgetta export prepared/ -o bundle/
  edgetta export wrn40_2 --weights wrn.pt --calibration photos/ -o bundle.zip
  edgetta export timm:resnet18 --option pretrained=true --parts 5 -o bundle/
  edgetta export prepared_int8/ -o bundle/          (after `edgetta prepare --precision int8`)
  edgetta export net.py:build --input-size 64 --cuts stem,block2 -o bundle/
"""


@click.command(epilog=EXAMPLES)
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
@partial(adaptation_options, but=("adapt_affine", "batch_norm"))
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
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.cli.tables import print_line
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.recipe import derive_recipe, has_given_weights, load

    show, output = not values["quiet"], values["output"]
    _check_output(output, values["overwrite"])
    config = adapt_config(AdaptConfig(), values)
    names = None if values["classes"] is None else class_names(values["classes"])
    prepared = _prepared(values)
    recipe = recipe_from(values["model"], values, values["seed"]) if prepared is None else prepared.recipe
    if recipe.batch_norm == "source":
        config = replace(config, batch_norm="source")
    if show and not has_given_weights(recipe):
        print_line(f"{recipe.model} has random weights: give trained ones with --weights", style="yellow", stderr=True)
    model = load(recipe)
    if names is not None and len(names) != model.num_classes:
        raise UsageError(f"--classes names {len(names)} classes, and the model has {model.num_classes}")
    material = _material(recipe, model, prepared, values)
    derived = derive_recipe(recipe, model, material.batches())
    network = _at_start(derived, material)
    adaptable = derived.adaptable
    tested = write_bundle(
        output,
        Shipment(network.programs, adaptable.cuts, adaptable.batch_norm, network.content),
        name=values["name"] or _name_of(values["model"]),
        config=config,
        classes=names or (None if prepared is None else prepared.classes),
        provenance=_provenance(derived, material, prepared),
        rate_law=_rate_law(prepared, config),
        accuracy_costs=None if prepared is None else prepared.costs,
        golden=material.golden(),
        overwrite=values["overwrite"],
        measure=partial(_measured, show=show) if values["measure"] else None,
    )
    if show:
        _show(output, derived, material, tested)


@dataclass(frozen=True)
class _Material:
    """What the network's state is made of: warmed-up tensors, source images, or neither."""

    meta: tuple[Path, dict[str, Tensor]] | None
    pictures: Pictures | None
    calibration: str | None

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
            return "of synthetic images, an approximation; better: --calibration DATA with source images"
        skipped = f", {self.pictures.skipped_count:,} skipped" if self.pictures.skipped_count else ""
        return f"of {len(self.pictures):,} images from {self.calibration}{skipped}"

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


def _material(recipe: Recipe, model: Model, prepared: Prepared | None, values: dict[str, Any]) -> _Material:
    """Read warmed-up tensors and source images.

    Raises:
        BundleError: warmed-up tensors that cannot be read.
        UsageError: meta-networks drawn at random that nobody warmed up, or no source images there.
    """
    from edgetta.cli.data import source_images
    from edgetta.cli.progress import progress_bar
    from edgetta.export.prepared import read_meta

    path: Path | None = values["meta"] if prepared is None else prepared.meta
    if path is None and recipe.initialisation == "published":
        raise UsageError(
            "meta-networks with the published initialisation start at random and need the warm-up of `edgetta prepare`"
        )
    meta = None if path is None else (path, read_meta(path))
    pictures = None
    if values["calibration"] is not None:
        with progress_bar("reading", unit="images", show=not values["quiet"]) as update:
            pictures = source_images(values["calibration"], model.input_shape, CALIBRATION_IMAGES, update)
    return _Material(meta, pictures, values["calibration"])


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
    return {"recipe": told.to_json(), "cuts": derived.origin, "statistics": material.kind(), **report}


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


def _show(output: Path, derived: Derived, material: _Material, tested: dict[str, SelfTest]) -> None:
    from edgetta.cli.tables import bytes_text, print_facts, print_line, print_table

    model, adaptable = derived.model, derived.adaptable
    size = " x ".join(map(str, adaptable.input_shape))
    print_facts(
        [
            ("model", f"{derived.recipe.model}: images {size}, {adaptable.classes} classes"),
            ("precision", f"{adaptable.precision} backbone, fp32 meta-networks"),
            ("weights", model.weights or ("random" if model.parts is not None else "the source's own")),
            ("cuts", f"{', '.join(adaptable.cuts)} ({ORIGINS[derived.origin]})"),
            ("statistics", material.told()),
        ]
    )
    print_table(
        ("part", "input", "output", "meta-network", "adapts inside"), _rows(derived), left=("part", "meta-network")
    )
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    count = "" if output.is_file() else f" in {len(files)} files"
    residuals = adaptable.programs.residuals
    kept = sum(residual.kept_bytes(16) - residual.kept_bytes(8) for residual in residuals) // 8
    facts = [
        ("adapts", f"{adaptable.programs.parameters.size:,} numbers"),
        ("kept for a backward", f"{bytes_text(kept)} per image, {len(residuals)} tensors"),
        ("bundle", f"{output}, {bytes_text(sum(path.stat().st_size for path in files))}{count}"),
    ]
    for engine, found in tested.items():
        errors = f"logits within {found.logits_error:.1e}, gradients within {found.gradient_error:.1e}"
        facts.append((f"self-test on {engine}", errors))
    print_facts(facts)
    place = shlex.quote(str(output))
    print_line(f"next: edgetta inspect {place}, or edgetta run {place} SOURCE", style="green")


def _rows(derived: Derived) -> Iterator[tuple[str, ...]]:
    """One row per part: shapes, its meta-network, and how many numbers adapt inside the part."""
    adaptable = derived.adaptable
    shapes = adaptable.programs.parameters.shapes
    parts = [(name, piece.graph) for name, piece in adaptable.pieces.items() if name.startswith("part")]
    for k, (name, graph) in enumerate(parts):
        source, target = graph.values["x"].shape[1:], graph.values[graph.outputs[0]].shape[1:]
        outputs, inputs, kernel, _ = shapes[f"metas.{k}.conv"]
        what = "per token" if len(source) == 2 else f"{kernel}x{kernel}, stride {-(-source[1] // target[1])}"
        inside = sum(math.prod(shape) for own, shape in shapes.items() if own.startswith(f"{name}."))
        sizes = (" x ".join(map(str, shape)) for shape in (source, target))
        yield name, *sizes, f"{inputs} -> {outputs}, {what}", f"{inside:,}"
