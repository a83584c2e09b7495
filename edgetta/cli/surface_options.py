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

    from edgetta.export.prepared import Prepared
    from edgetta.export.recipe import Recipe
    from edgetta.offline.curvature import DataOperator, LossSurface
    from edgetta.offline.network import Network
    from edgetta.sources.resize import Resize

_Function = TypeVar("_Function", bound=Callable[..., Any])

CALIBRATION_IMAGES = 256
"""Images for the source statistics of meta-networks that nobody prepared, taken from DATA."""
STREAM_BATCH = 64
"""Images of a batch of the stream that statistics are of."""


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
            metavar="all|adapted|meta|MODULE",
            default="all",
            show_default=True,
            help="All parameters; what adapts on a device (meta-networks, biases and weights inside the frozen "
            "parts); the meta-networks alone; or one module by its name.",
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
            help="Weight of the meta-networks' distances in the objective (with --parameters adapted or meta).",
        ),
        click.option(
            "--statistics",
            type=click.Choice(["auto", "source", "batch", "stream"]),
            default="auto",
            show_default=True,
            help="BatchNorm statistics: as stored (source), of each batch, or as a device has them after a stream of "
            "DATA. auto: stream with --parameters adapted or meta, else source.",
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
    meta = values["parameters"] in ("adapted", "meta")
    if values["regulariser"] and not meta:
        raise UsageError("--regulariser weighs the distances of meta-networks; it needs --parameters adapted or meta")
    folder = Path(values["model"])
    if folder.suffix == ".zip" or (folder / "manifest.json").is_file():
        return _bundle(values, folder, meta)
    if folder.is_dir() and not meta:
        raise UsageError(f"MODEL {folder} is a folder: measure what adapts in it with --parameters adapted")
    if folder.is_dir():
        return _meta(values, _prepared(values, folder))
    recipe = recipe_from(values["model"], values, values["seed"])
    return _meta(values, recipe) if meta else _plain(values, recipe)


def _plain(values: Mapping[str, Any], recipe: Recipe) -> _Surface:
    from edgetta.export.recipe import load_trained
    from edgetta.offline.curvature import LossSurface

    if values["statistics"] == "stream":
        raise UsageError("--statistics stream belongs to --parameters adapted; stored ones are --statistics source")
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
    """What adapts of a preparation, or beside the parts of a model with fresh meta-networks."""
    from edgetta.export.prepared import Prepared, read_meta
    from edgetta.export.recipe import derive_recipe, load_trained
    from edgetta.offline.source_statistics import batches_of, with_source_statistics

    prepared = origin if isinstance(origin, Prepared) else None
    recipe = origin.recipe if isinstance(origin, Prepared) else origin
    model = load_trained(recipe)
    derived = derive_recipe(recipe, model)

    def make(samples: PictureSamples, device: Any) -> LossSurface:
        if prepared is not None:
            return _adaptation(values, derived.network().with_tensors(read_meta(prepared.meta)), samples, device)
        images, _ = samples.batch(range(min(CALIBRATION_IMAGES, len(samples))))
        network = with_source_statistics(derived.network(), batches_of(images, 64))
        return _adaptation(values, network, samples, device)

    return make, derived.adaptable.input_shape, derived.adaptable.classes, model.resize


def _bundle(values: Mapping[str, Any], path: Path, meta: bool) -> _Surface:
    from edgetta.bundle import read_bundle
    from edgetta.offline.network import Network

    if not meta:
        raise UsageError(f"a bundle trains what adapts only: measure {path} with --parameters adapted")
    if given_names(values):
        raise UsageError(f"{', '.join(given_names(values))}: settled in the bundle {path}; leave it out")
    bundle = read_bundle(path)
    network = Network(bundle.programs, bundle.content)
    return (
        lambda samples, device: _adaptation(values, network, samples, device),
        bundle.input_shape,
        bundle.class_count,
        bundle.resize,
    )


def _adaptation(values: Mapping[str, Any], network: Network, samples: PictureSamples, device: Any) -> LossSurface:
    import torch

    from edgetta.adaptation.config import AdaptConfig
    from edgetta.offline.curvature.adaptation import adaptation_surface
    from edgetta.offline.learning_rate.adaptation_curvature import settled_statistics

    policy: Any = "stream" if values["statistics"] == "auto" else values["statistics"]
    images, _ = samples.batch(range(min(AdaptConfig().statistics_images, len(samples))))
    config = AdaptConfig(batch_norm=policy)
    return adaptation_surface(
        network.programs,
        "entropy" if values["objective"] == "entropy" else "cross_entropy",
        statistics=settled_statistics(network, images, min(STREAM_BATCH, len(images)), config),
        moving=policy != "source",
        regulariser=values["regulariser"],
        affine=values["parameters"] == "adapted",
        device=device,
        dtype=torch.float64 if values["double"] else torch.float32,
    )


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
    log_probabilities = outputs.log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1).mean()


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is unknown; write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no CUDA device here; write cpu")
    return device
