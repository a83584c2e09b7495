"""The options that say which loss surface is measured: model, parameters, objective, data, statistics, memory.

The same for `edgetta curvature` and `edgetta learning-rate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.cli.model_options import given_names, model_options, recipe_from
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.adaptation.network import AdaptiveNetwork
    from edgetta.export.prepared import Prepared
    from edgetta.export.recipe import Recipe
    from edgetta.offline.curvature import DataOperator, LossSurface
    from edgetta.sources.resize import Resize

_Function = TypeVar("_Function", bound=Callable[..., Any])

CALIBRATION_IMAGES = 256
"""Images for the source statistics of meta-networks that nobody prepared, taken from DATA."""


def surface_options(function: _Function) -> _Function:
    """Add the options to a click command."""
    options = [
        click.option("--data", metavar="DATA", required=True, help="Images to measure on; see above."),
        click.option(
            "--samples",
            metavar="N",
            type=click.IntRange(1),
            default=1024,
            show_default=True,
            help="At most N images, spread over DATA.",
        ),
        click.option(
            "--operator",
            type=click.Choice(["hessian", "ggn", "fisher"]),
            default="hessian",
            show_default=True,
            help="Hessian, generalised Gauss-Newton, or empirical Fisher matrix.",
        ),
        click.option(
            "--parameters",
            metavar="all|meta|MODULE",
            default="all",
            show_default=True,
            help="All parameters, the meta-networks beside the frozen parts, or one module by its name.",
        ),
        click.option(
            "--objective",
            type=click.Choice(["cross-entropy", "entropy"]),
            default="cross-entropy",
            show_default=True,
            help="Entropy is what adaptation descends; it needs no labels.",
        ),
        click.option(
            "--regulariser",
            metavar="X",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            help="Weight of the meta-networks' distances in the objective (with --parameters meta).",
        ),
        click.option(
            "--statistics",
            type=click.Choice(["auto", "source", "batch", "ema"]),
            default="auto",
            show_default=True,
            help="BatchNorm statistics: stored (source, ema), or of each batch. auto: source; with --parameters meta "
            "as the device has it, by batch size.",
        ),
        click.option(
            "--memory-limit",
            metavar="MIB",
            type=click.IntRange(1),
            help="MiB that one pass may hold for its graphs; batches are split where that changes nothing.",
        ),
        click.option("--double", is_flag=True, help="Measure in float64 instead of float32."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1."),
        click.option("--seed", metavar="N", type=click.IntRange(0), default=0, show_default=True),
    ]
    for option in reversed(options):
        function = option(function)
    return model_options(function)


@dataclass(frozen=True)
class PictureSamples:
    """Images as they were read (bytes stay bytes), as floats in [0, 1] when a batch is asked for."""

    images: Tensor  # (N, C, H, W), uint8 or float32
    labels: Tensor | None  # (N,)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> tuple[Any, Any]:
        import torch

        rows = torch.as_tensor(list(indices))
        images = self.images[rows]
        floats = images.float() / 255 if images.dtype == torch.uint8 else images
        return floats, None if self.labels is None else self.labels[rows]


def measured_operator(values: Mapping[str, Any], batch_size: int, *, show: bool) -> DataOperator:
    """The curvature operator that the options describe.

    Raises:
        EdgettaError: whatever is wrong with the model, the data or the options.
    """
    from edgetta.offline.curvature import OPERATORS

    device = _device(values["device"])
    make, input_shape, classes, resize = _model(values)
    samples = _samples(values, input_shape, classes, resize, show)
    surface = make(samples, device)
    limit = values["memory_limit"]
    return OPERATORS[values["operator"]](
        surface, samples, batch_size=batch_size, memory_limit=None if limit is None else limit * 2**20
    )


def make_folder(folder: Path) -> None:
    """Make the folder for the results, with those above it.

    Raises:
        StorageError: it cannot be made.
    """
    from edgetta.storage import storage_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


_Make = Callable[[PictureSamples, Any], "LossSurface"]


_Surface = tuple[_Make, tuple[int, int, int], int, "Resize"]


def _model(values: Mapping[str, Any]) -> _Surface:
    """How to make the surface once the data are there; the model's input shape, number of classes, and resizing."""
    meta = values["parameters"] == "meta"
    if values["regulariser"] and not meta:
        raise UsageError("--regulariser weighs the distances of meta-networks; it needs --parameters meta")
    folder = Path(values["model"])
    if folder.suffix == ".zip" or (folder / "manifest.json").is_file():
        return _bundle(values, folder, meta)
    if folder.is_dir() and not meta:
        raise UsageError(f"MODEL {folder} is a folder: measure its meta-networks with --parameters meta")
    if folder.is_dir():
        return _meta(values, _prepared(values, folder))
    recipe = recipe_from(values["model"], values, values["seed"])
    return _meta(values, recipe) if meta else _plain(values, recipe)


def _plain(values: Mapping[str, Any], recipe: Recipe) -> _Surface:
    from edgetta.export.recipe import load_trained
    from edgetta.offline.curvature import LossSurface

    if values["statistics"] == "ema":
        raise UsageError("--statistics ema belongs to --parameters meta; stored statistics are --statistics source")
    model = load_trained(recipe)

    def make(samples: PictureSamples, device: Any) -> LossSurface:
        import torch

        module = model.module.to(device)
        if values["double"]:
            module = module.double()
        loss = torch.nn.functional.cross_entropy if values["objective"] == "cross-entropy" else _mean_entropy
        return LossSurface(
            module,
            loss,
            parameters=values["parameters"],
            batch_norm="batch" if values["statistics"] == "batch" else "source",
        )

    return make, model.input_shape, model.num_classes, model.resize


def _prepared(values: Mapping[str, Any], folder: Path) -> Prepared:
    from edgetta.export.prepared import read_prepared

    if given_names(values):
        raise UsageError(f"{', '.join(given_names(values))}: settled when {folder} was prepared; leave it out")
    return read_prepared(folder)


def _meta(values: Mapping[str, Any], origin: Prepared | Recipe) -> _Surface:
    """The meta-networks of a preparation, or fresh ones beside the parts of a model."""
    from edgetta.export.prepared import Prepared, read_meta
    from edgetta.export.recipe import derive_recipe, load_trained
    from edgetta.offline.source_statistics import batches_of, set_source_statistics

    prepared = origin if isinstance(origin, Prepared) else None
    recipe = origin.recipe if isinstance(origin, Prepared) else origin
    model = load_trained(recipe)
    derived = derive_recipe(recipe, model)
    network = derived.network(batch_norm=values["statistics"])

    def make(samples: PictureSamples, device: Any) -> LossSurface:
        if prepared is None:
            images, _ = samples.batch(range(min(CALIBRATION_IMAGES, len(samples))))
            set_source_statistics(network, batches_of(images, 64), derived.adaptable.input_shape)
        else:
            network.load_state_dict(read_meta(prepared.meta))
        return _adaptation(values, network, device)

    return make, derived.adaptable.input_shape, derived.adaptable.classes, model.resize


def _bundle(values: Mapping[str, Any], path: Path, meta: bool) -> _Surface:
    from edgetta.bundle import build_network, read_bundle

    if not meta:
        raise UsageError(f"a bundle trains its meta-networks only: measure {path} with --parameters meta")
    if given_names(values):
        raise UsageError(f"{', '.join(given_names(values))}: settled in the bundle {path}; leave it out")
    bundle = read_bundle(path)
    policy = None if values["statistics"] == "auto" else values["statistics"]
    network = build_network(bundle, "torch", batch_norm=policy)
    return (
        lambda samples, device: _adaptation(values, network, device),
        bundle.model.input_shape,
        bundle.model.classes,
        bundle.resize,
    )


def _adaptation(values: Mapping[str, Any], network: AdaptiveNetwork, device: Any) -> LossSurface:
    from edgetta.offline.curvature.adaptation import adaptation_surface

    network.metas.to(device)
    if values["double"]:
        network.metas.double()
    objective = "entropy" if values["objective"] == "entropy" else "cross_entropy"
    return adaptation_surface(network, objective, regulariser=values["regulariser"])  # type: ignore[arg-type]


def _samples(
    values: Mapping[str, Any], input_shape: tuple[int, int, int], classes: int, resize: Resize, show: bool
) -> PictureSamples:
    from edgetta.cli.data import BUILT_IN, labelled_data, source_images
    from edgetta.cli.progress import progress_bar
    from edgetta.sources.labelled import check_classes, read_labelled

    spec, limit = values["data"], values["samples"]
    with progress_bar("reading", unit="images", show=show) as update:
        if spec in BUILT_IN and not Path(spec).exists():
            found, _ = labelled_data(spec, input_shape, held_out=0.5, seed=values["seed"], limit=limit, resize=resize)
        elif values["objective"] == "entropy":
            return PictureSamples(source_images(spec, input_shape, limit, update, resize).images, None)
        else:
            found = read_labelled(spec, input_shape, None, limit, update, resize)
    if values["objective"] == "cross-entropy":
        found = check_classes(found, classes)
    return PictureSamples(found.images, found.labels)


def _mean_entropy(outputs: Tensor, targets: Any) -> Tensor:
    from edgetta.adaptation.objective import entropy

    return entropy(outputs).mean()


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is unknown; write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device here; write cpu")
    return device
