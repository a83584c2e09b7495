"""Which model, which weights, cut where, beside which meta-networks: everything that decides what a bundle holds.

`edgetta prepare` writes a recipe down and `edgetta export` repeats it, so that meta-networks that were warmed up
always meet the frozen parts that they were warmed up with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from edgetta.adaptation.meta_network import Initialisation
from edgetta.errors import UsageError
from edgetta.export.adaptable import AdaptableModel
from edgetta.export.batch_norm import Adapt
from edgetta.export.cut import automatic_cuts
from edgetta.export.derive import derive
from edgetta.export.quantise import Ranges, measure_ranges
from edgetta.export.trace import trace
from edgetta.models import Model, load_model
from edgetta.offline.network import Network
from edgetta.sources.resize import Interpolation, Policy

DEFAULT_PARTS = 4
"""Parts of a network for which no paper says a number."""

# What `load_model` takes by name and does not hand on.
_OWN_FIELDS = frozenset(
    {
        *("spec", "weights", "num_classes", "width", "input_shape", "mean", "std"),
        *("resize", "short_side", "interpolation", "fill"),
    }
)

CutOrigin = Literal["given", "published", "inferred", "by stages", "automatic"]


@dataclass(frozen=True)
class Recipe:
    """A model by name, and how it becomes adaptable. `edgetta.models.load_model` and `derive` explain the fields."""

    model: str  # as `load_model` takes it
    weights: str | None = None
    num_classes: int | None = None
    width: float | None = None
    input_shape: tuple[int, int, int] | None = None  # channels, height, width
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: Policy | None = None  # how pictures become the input; None: as published
    short_side: int | None = None  # of a picture before its centre is cut out
    interpolation: Interpolation | None = None
    fill: tuple[int, int, int] | None = None  # of the borders of `pad`
    random_weights: bool = False  # go on where nobody gave trained ones
    options: Mapping[str, Any] = field(default_factory=dict)  # for the library or function that builds the model
    parts: int | None = None  # None: the network's published number, else `DEFAULT_PARTS` or what it has
    cuts: tuple[str, ...] | None = None  # module names, the stem's end first; None: published, else automatic
    batch_norm: Literal["adaptive", "source"] = "adaptive"
    adapt: Adapt = "affine"
    initialisation: Initialisation = "identity"
    kernel: int | None = None  # None: the published one, else what stays small beside the backbone
    precision: Literal["fp32", "int8"] = "fp32"  # of the backbone
    ranges: Ranges | None = None  # for int8; None: to be measured on source images
    seed: int = 0  # of weights that nobody gave, and of the meta-networks' convolutions

    def __post_init__(self) -> None:
        if self.parts is not None and self.cuts is not None:
            raise UsageError("give the number of parts or the cuts, not both: the cuts say how many parts there are")
        if self.parts is not None and self.parts < 1:
            raise UsageError(f"parts must be at least 1, not {self.parts}")
        if self.precision not in ("fp32", "int8"):
            raise UsageError(f"precision is fp32 or int8, not {self.precision!r}")
        own = sorted(set(self.options) & _OWN_FIELDS)
        if own:
            raise UsageError(f"{own[0]} cannot be handed on to what builds the model; it has an option of its own")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` wrote. Raises `UsageError` for a field that a recipe does not have."""
        known = {item.name for item in fields(Recipe)}
        if not set(data) <= known:
            raise UsageError(f"unknown field {min(set(data) - known)!r}")
        fields_given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return Recipe(**fields_given)


@dataclass(frozen=True)
class Derived:
    """A recipe carried out."""

    recipe: Recipe
    model: Model
    adaptable: AdaptableModel
    origin: CutOrigin  # of the cuts

    def network(self) -> Network:
        """The network with its meta-networks initialised, but without source statistics."""
        return Network(self.adaptable.programs)


def load(recipe: Recipe) -> Model:
    """The recipe's model, in evaluation mode; weights that nobody gave are drawn from its seed."""
    # Weights are drawn from torch's global generator, which is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return load_model(
            recipe.model,
            weights=recipe.weights,
            num_classes=recipe.num_classes,
            width=recipe.width,
            input_shape=recipe.input_shape,
            mean=recipe.mean,
            std=recipe.std,
            resize=recipe.resize,
            short_side=recipe.short_side,
            interpolation=recipe.interpolation,
            fill=recipe.fill,
            **recipe.options,
        )


def load_trained(recipe: Recipe) -> Model:
    """`load`, but weights that nobody gave are refused, unless the recipe says `random_weights`.

    A function in a file is called twice, with other random numbers: what then differs was not loaded. The model's
    `origin` is None where weights are random.

    Raises:
        UsageError: random weights.
    """
    model = load(recipe)
    if recipe.weights is None and ".py:" in recipe.model:
        first, second = model.module.state_dict(), load(replace(recipe, seed=recipe.seed + 1)).module.state_dict()
        drawn = [name for name, tensor in first.items() if not _same(tensor, second.get(name, tensor))]
        if drawn:
            remedy = f"{drawn[0]} is another one at each call; load trained ones there, or give them with --weights"
            model = replace(model, origin=None, remedy=remedy)
    if model.origin is None and not recipe.random_weights:
        raise UsageError(
            f"{recipe.model} has random weights: {model.remedy} (or say --random-weights, where they are wanted)"
        )
    return model


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN


def derive_recipe(recipe: Recipe, model: Model | None = None, calibration: Iterable[Tensor] | None = None) -> Derived:
    """Carry a recipe out: load its model (unless it is handed over), choose the cuts, derive the programs.

    calibration  source images (N, C, H, W) in [0, 1] that int8 ranges are measured on, where the recipe has none; the
                 recipe that comes back has them
    Raises `UsageError`, `TraceError`, `DifferentiationError` and what `load_model` raises.
    """
    model = load(recipe) if model is None else model
    cuts, kernel = recipe.cuts, recipe.kernel
    origin: CutOrigin = "automatic" if cuts is None else "given"
    if model.parts is not None:
        kernel = model.parts.kernel if kernel is None else kernel
        if cuts is None:
            cuts = model.parts.cuts(recipe.parts)
            count = len(cuts) - 1
            origin = "published" if count in model.parts.splits else "by stages"
            if count in model.parts.inferred:
                origin = "inferred"
    if cuts is None and recipe.parts is None:
        cuts = _automatic_cuts(model)
    derived = partial(
        derive,
        model.module,
        model.input_shape,
        cuts,
        DEFAULT_PARTS if recipe.parts is None else recipe.parts,
        recipe.batch_norm,
        recipe.adapt,
        recipe.initialisation,
        kernel,
        seed=recipe.seed,
    )
    if recipe.precision == "fp32":
        return Derived(recipe, model, derived(), origin)
    if recipe.ranges is None:
        if calibration is None:
            raise UsageError("int8 chooses its ranges on source images: give some with --calibration DATA")
        recipe = replace(recipe, ranges=measure_ranges(derived(), calibration))
    return Derived(recipe, model, derived(ranges=recipe.ranges), origin)


def _automatic_cuts(model: Model) -> tuple[str, ...]:
    """Cuts into the default number of parts, or into as many as a smaller model has.

    Raises:
        UsageError: it has none.
    """
    traced = trace(model.module, model.input_shape)
    for parts in range(DEFAULT_PARTS, 1, -1):
        with suppress(UsageError):
            return automatic_cuts(traced, parts)
    return automatic_cuts(traced, 1)
