"""Every method of the bench by name: how it is made, and the settings that are tried for it.

Each has the same number of trials (`TRIALS`) on the tuning stream; the best one meets the test corruptions, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.bench.accuracy.edgetta_method import AffineOracle, Edgetta, MetaOracle
from edgetta.bench.accuracy.images import CLEAN, ImageCache
from edgetta.bench.accuracy.mirrored import MirroredTent
from edgetta.bench.accuracy.published import EcottaPublished, warmed_up
from edgetta.bench.accuracy.streams import as_tensor
from edgetta.bench.baselines import (
    BatchNormStatistics,
    Cotta,
    CottaConfig,
    Eata,
    EataConfig,
    Method,
    Rdumb,
    Roid,
    RoidConfig,
    Rotta,
    RottaConfig,
    Sar,
    SarConfig,
    Source,
    Tent,
    TentConfig,
)
from edgetta.errors import UsageError
from edgetta.export.batch_norm import Adapt
from edgetta.export.content import measure_content
from edgetta.export.derive import derive
from edgetta.models import cuts, load_model
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import batches_of, with_source_statistics
from edgetta.sources.datasets import data_folder

TRIALS = 4
SOURCE_IMAGES = 2048  # clean training images, for source statistics and Fisher information
SOURCE_SEED = 101
Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SourceModel:
    """The network that everything starts from, and what methods may know of its training images."""

    architecture: str
    weights: str
    module: nn.Module
    images: Tensor  # float (N, C, H, W), clean training images
    network: Network  # edgetta's, as it ships
    cuts: tuple[str, ...]
    cache: ImageCache

    @cached_property
    def published(self) -> Network:
        """EcoTTA's network as published, warmed up; the first call may train for minutes."""
        return warmed_up(self.architecture, self.weights, self.cache)

    @cached_property
    def constant(self) -> SourceModel:
        """The same, but biases adapt alone: gradients take BatchNorm's statistics for constants."""
        return SourceModel.load(self.weights, self.cache, adapt="bias")

    @staticmethod
    def load(weights: str, cache: ImageCache, parts: int = 4, adapt: Adapt = "affine") -> SourceModel:
        """A network of the data folder, e.g. `resnet20_jpegft`. Raises `EdgettaError` where data is absent."""
        architecture = next((name for name in ("resnet20", "resnet44", "resnet56") if name in weights), None)
        if architecture is None:
            raise UsageError(f"--model {weights!r}: the bench knows networks of resnet20, resnet44 and resnet56")
        loaded = load_model(architecture, weights=data_folder() / "weights" / f"{weights}.npz")
        adaptable = derive(loaded.module, loaded.input_shape, cuts(architecture, parts), kernel=3, adapt=adapt)
        images = as_tensor(cache.images("train", CLEAN, 1, SOURCE_IMAGES, SOURCE_SEED).images)
        network = with_source_statistics(Network(adaptable.programs), batches_of(images, 64))
        network = replace(network, content=measure_content(network.programs, batches_of(images, 64)))
        return SourceModel(architecture, weights, loaded.module, images, network, adaptable.cuts, cache)


Make = Callable[[SourceModel, Settings, int], Method]


@dataclass(frozen=True)
class Entry:
    """A method: how it is made of a source model, settings and a seed, and what is tried."""

    make: Make
    trials: tuple[Settings, ...] = ({},)


def _rates(*rates: float, **others: Any) -> tuple[Settings, ...]:
    return tuple({"learning_rate": rate, **others} for rate in rates)


def _eata(source: SourceModel, settings: Settings, seed: int) -> Method:
    return Eata(source.module, source.images.split(64), EataConfig(**settings))


def _edgetta(source: SourceModel, settings: Settings, seed: int, plan: StepPlan = KEEP) -> Method:
    return Edgetta(source.network, AdaptConfig.from_json(dict(settings)), plan)


METHODS: dict[str, Entry] = {
    "source": Entry(lambda source, settings, seed: Source(source.module)),
    "batch_norm_statistics": Entry(lambda source, settings, seed: BatchNormStatistics(source.module)),
    "tent": Entry(
        lambda source, settings, seed: Tent(source.module, TentConfig(**settings)), _rates(2.5e-4, 5e-4, 1e-3, 2e-3)
    ),
    "tent_mirrored": Entry(lambda source, settings, seed: MirroredTent(source.module, TentConfig(**settings))),
    "eata": Entry(_eata, _rates(5e-4, 1e-3, 2e-3, 4e-3)),
    "sar": Entry(
        lambda source, settings, seed: Sar(source.module, SarConfig(**settings)), _rates(1e-3, 3e-3, 1e-2, 3e-2)
    ),
    "cotta": Entry(lambda source, settings, seed: Cotta(source.module, CottaConfig(**settings), seed)),
    "rotta": Entry(
        lambda source, settings, seed: Rotta(source.module, RottaConfig(**settings), seed),
        _rates(2.5e-4, 5e-4, 1e-3, 2e-3),
    ),
    "rdumb": Entry(
        lambda source, settings, seed: Rdumb(source.module, EataConfig(**settings)), _rates(5e-4, 1e-3, 2e-3, 4e-3)
    ),
    "roid": Entry(
        lambda source, settings, seed: Roid(source.module, RoidConfig(**settings), seed),
        _rates(2.5e-4, 5e-4, 1e-3, 2e-3),
    ),
    "ecotta_published": Entry(
        lambda source, settings, seed: EcottaPublished(source.module, source.cuts, source.published, **settings),
        _rates(6e-4, 1.25e-3, 2.5e-3, 5e-3),
    ),
    "ecotta_warm_up_only": Entry(
        lambda source, settings, seed: EcottaPublished(
            source.module, source.cuts, source.published, learning_rate=0.0, adapts=False
        )
    ),
    "oracle_affine": Entry(
        lambda source, settings, seed: AffineOracle(source.module, **settings), _rates(5e-4, 1e-3, 2e-3, 4e-3)
    ),
    "oracle_meta": Entry(
        lambda source, settings, seed: MetaOracle(source.network, **settings),
        _rates(5e-4, 1e-3, 2e-3, 4e-3),
    ),
    "oracle_constant": Entry(lambda source, settings, seed: MetaOracle(source.constant.network, **settings)),
    "edgetta_constant": Entry(lambda source, settings, seed: _edgetta(source.constant, settings, seed)),
    "warm_up_only": Entry(lambda source, settings, seed: _edgetta(source, {**settings, "when": "off"}, seed)),
    "edgetta_mirrored": Entry(lambda source, settings, seed: _edgetta(source, {**settings, "mirrored": True}, seed)),
    "edgetta_on_drift": Entry(lambda source, settings, seed: _edgetta(source, {**settings, "when": "on-drift"}, seed)),
    "edgetta_budgeted": Entry(
        lambda source, settings, seed: _edgetta(source, {**settings, "when": "budgeted 20%"}, seed)
    ),
    "edgetta_smallest": Entry(
        lambda source, settings, seed: _edgetta(source, settings, seed, StepPlan(keep=False, learn=8, slice=1))
    ),
    "edgetta_batch_statistics": Entry(
        lambda source, settings, seed: _edgetta(source, {**settings, "batch_norm": "batch"}, seed)
    ),
    "edgetta": Entry(
        _edgetta,
        (
            *_rates(5e-3, 1e-2, anchor=0.02),
            *_rates(5e-3, entropy_margin=1.0, regulariser=0.0, anchor=0.02),
            *_rates(5e-3, anchor=0.02, learn_images=64),
        ),
    ),
}
ORACLES = ("oracle_affine", "oracle_meta")
VARIANTS = {
    "oracle_constant": "oracle_meta",
    "edgetta_constant": "edgetta",
    "tent_mirrored": "tent",
    "edgetta_smallest": "edgetta",
    "warm_up_only": "edgetta",
    "edgetta_mirrored": "edgetta",
    "edgetta_on_drift": "edgetta",
    "edgetta_budgeted": "edgetta",
    "edgetta_batch_statistics": "edgetta",
}
"""Methods with one thing changed; they take the settings of the method that is named."""


def make(name: str, source: SourceModel, settings: Settings, seed: int) -> Method:
    """The method of that name. Raises `UsageError` for an unknown one."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; use any of {', '.join(METHODS)}")
    torch.manual_seed(seed)
    return METHODS[name].make(source, settings, seed)
