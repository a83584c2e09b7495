"""What bounds a step of adaptation at each batch size, measured on source images under corruptions.

Two bounds. The largest |eigenvalue| of the Hessian of the adaptation objective: entropy is indefinite, so both ends of
the spectrum bend. And how fast predictions change along the gradient, g^T F g with F the Fisher matrix of the
predictions: entropy has no minimum to be stable around, and what collapses is the predictions (ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.normaliser import fixed
from edgetta.adaptation.objective import divergence, filtered_entropy
from edgetta.engines.contract import Array, Mixing, Moments, Statistics
from edgetta.engines.torch import TorchEngine
from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    CurvatureError,
    DataSetTooSmallError,
    HessianOperator,
    NotFiniteError,
    Progress,
    ProgressCallback,
)
from edgetta.offline.curvature.adaptation import adaptation_surface
from edgetta.offline.curvature.basis import free_bytes
from edgetta.offline.learning_rate.interval import Interval, positive_interval, resamples
from edgetta.offline.learning_rate.ladder import BatchExtremes, Ladder, draw_batches, measure_ladder
from edgetta.offline.network import Network
from edgetta.offline.pixels import as_floats

PROBE = 1e-3
"""Nats per image by which a probing step changes the predictions: large beside rounding, small beside 1."""


@dataclass(frozen=True)
class AdaptationCurvature:
    """Both bounds for each batch size; batches come from one domain each, as on a device."""

    ladder: Ladder  # extreme eigenvalues of the Hessian of the objective
    speeds: Mapping[int, tuple[float, ...]]  # batch size -> g^T F g of each batch
    domains: tuple[str, ...]
    unconfident: int  # batches in which no image passed the entropy filter, left out of the speeds

    def speed(self, batch_size: int) -> Interval:
        """The mean of g^T F g over batches: half of it times the squared rate is the expected divergence of a step."""
        values = np.array(self.speeds[batch_size])
        drawn = values[resamples(len(values), 1000, np.random.default_rng(batch_size))].mean(axis=1)
        return positive_interval(float(values.mean()), drawn, len(values))


def measure_adaptation(
    network: Network,
    domains: Mapping[str, Tensor],
    config: AdaptConfig,
    batch_sizes: Sequence[int],
    *,
    batches: int = 4,
    probes: int = 8,
    iterations: int = 20,
    tolerance: float = 0.05,
    memory_limit: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> AdaptationCurvature:
    """Measure on the network as it ships, with the statistics that a device has after a while on each domain.

    Args:
        network: as it ships.
        domains: name -> images (N, C, H, W), uint8 or floats in [0, 1], under one corruption.
        config: gives regulariser, entropy filter and the statistics; whether biases and weights inside adapt.
        batch_sizes: each is measured under the statistics policy that a device has at that size.
        batches: per size, for the eigenvalues, over all domains.
        probes: per size, for g^T F g, over all domains; cheaper, and its spread is wider.
        iterations, tolerance: of Lanczos, see `measure_ladder`.
        memory_limit: bytes of one product; None: half of what is free.
        seed: of batches and start vectors.

    Raises:
        DataSetTooSmallError: a batch is larger than a domain.
        MemoryLimitError: a batch needs more memory for its second derivatives than there is.
        NotFiniteError: no batch of some size has a gradient.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    if not domains or not sizes or sizes[0] < 1 or batches < 1 or probes < 1:
        raise UsageError("a domain, a positive batch size, a batch and a probe are needed at least")
    for name, images in domains.items():
        if len(images) < sizes[-1]:
            raise DataSetTooSmallError(
                f"a batch of {sizes[-1]} is larger than the {len(images)} images under {name}; give more images, or "
                "leave that size out"
            )
    limit = free_bytes(torch.device("cpu")) // 2 if memory_limit is None else memory_limit
    found: dict[int, list[BatchExtremes]] = {size: [] for size in sizes}
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    unconfident, done, total = 0, 0, len(sizes) * len(domains)
    for number, (name, images) in enumerate(domains.items()):
        samples = as_floats(images)
        for size in sizes:
            own, probed = (_share(count, number, len(domains)) for count in (batches, probes))
            statistics = settled_statistics(network, samples, size, config)
            if own:
                surface = adaptation_surface(
                    network.programs,
                    statistics=statistics,
                    moving=config.batch_norm != "source",
                    regulariser=config.regulariser,
                    margin=config.entropy_margin,
                    affine=config.adapt_affine,
                )
                operator = HessianOperator(surface, samples, batch_size=size, memory_limit=limit, distributed=False)
                _ = operator.micro_batch  # a limit that is too small is found before anything long
                rungs = measure_ladder(
                    operator, [size], batches=own, iterations=iterations, tolerance=tolerance, seed=seed + number
                ).rungs
                found[size] += rungs
            for indices in draw_batches(len(samples), size, probed, seed + number):
                speed = gradient_speed(network.engine, samples[indices].numpy(), config, statistics)
                unconfident += speed is None
                speeds[size] += [] if speed is None else [speed]
            done += 1
            if progress is not None:
                progress(Progress(f"{name}, batch size {size}", done, total))
    for size, values in speeds.items():
        if not values:
            raise NotFiniteError(
                f"no batch of {size} has an image below the entropy margin, so no step is known; raise the margin"
            )
    pooled = tuple(_pooled(size, rungs) for size, rungs in found.items())
    smallest = min(len(images) for images in domains.values())
    return AdaptationCurvature(
        Ladder(pooled, smallest), {k: tuple(v) for k, v in speeds.items()}, tuple(domains), unconfident
    )


def gradient_speed(
    engine: TorchEngine, images: Array, config: AdaptConfig, statistics: Statistics | None
) -> float | None:
    """g^T F g of a batch (N, C, H, W), g the gradient of its own objective and F the Fisher matrix of its predictions.

    From forwards alone: a step of length e along g changes the predictions by e^2/2 g^T F g nats, to leading order; e
    is chosen so that this is about `PROBE`. Without given statistics those of the batch follow the step and take part
    of the change back: a product with F that holds them constant would be larger. None where no image passes the
    entropy filter.

    Raises:
        NotFiniteError: the gradient moves no prediction, or something is not finite.
    """
    start = engine.programs.shipped
    mixing = mixing_of(engine, statistics)
    before, own = engine.measure(images, start, mixing)
    objective = filtered_entropy(before, config.entropy_margin)
    if not objective.kept:
        return None
    used = Statistics(own.mean, own.variance) if statistics is None else statistics
    passed = engine.forward(images, start, used, moments=False)
    gradient = engine.backward(passed.residuals, objective.gradient, config.regulariser, start)
    if not config.adapt_affine:
        gradient = np.where(in_meta_networks(engine), gradient, 0.0)
    length = PROBE**0.5
    for _ in range(20):
        after, _ = engine.measure(images, start - length * gradient, mixing)
        moved = divergence(before, after)
        if PROBE / 4 <= moved <= PROBE * 4:
            return 2 * moved / length**2
        length *= min(max((PROBE / moved) ** 0.5, 1e-2), 1e2) if moved > 0 else 10.0
        if not np.isfinite(length):
            break
    raise NotFiniteError("no step along the gradient changes the predictions by a small amount; check the network")


def mixing_of(engine: TorchEngine, statistics: Statistics | None) -> Mixing:
    """Statistics as they are, whatever the batch; None: each batch's own."""
    source = engine.programs.source
    return Mixing.plain(Moments(source.mean, source.variance), 1.0) if statistics is None else fixed(statistics)


def in_meta_networks(engine: TorchEngine) -> Array:
    """(P,) whether a parameter belongs to a meta-network."""
    layout = engine.programs.parameters
    return layout.join({name: np.full(shape, name.startswith("meta")) for name, shape in layout.shapes.items()})


def settled_statistics(network: Network, images: Tensor, batch: int, config: AdaptConfig) -> Statistics | None:
    """What a device normalises batches of this size with, after a while on these images; None: with each batch's own.

    Where it averages over its stream they stay as they are meanwhile, for a batch moves them little.
    """
    adapter = network.adapter(replace(config, when="off"))
    reach = min(len(images), config.statistics_images) if config.batch_norm == "stream" else 0
    for k in range(0, reach - batch + 1, batch):
        adapter.step(images[k : k + batch].numpy())
    return statistics_now(adapter)


def statistics_now(adapter: Adapter) -> Statistics | None:
    """What an adapter normalises the next batch with; None: with its own."""
    if adapter.config.batch_norm == "stream":
        return adapter.normaliser.statistics(adapter.state.stream)
    return None if adapter.config.batch_norm == "batch" else adapter.engine.programs.source


def _share(count: int, number: int, domains: int) -> int:
    """How many of `count` batches the domain of this number gives."""
    return count * (number + 1) // domains - count * number // domains


def _pooled(size: int, rungs: Sequence[BatchExtremes]) -> BatchExtremes:
    if not rungs:
        raise CurvatureError(f"no batch of {size} was measured")
    return BatchExtremes(
        size,
        tuple(value for rung in rungs for value in rung.largest),
        tuple(value for rung in rungs for value in rung.smallest),
        sum(rung.products for rung in rungs),
        sum(rung.unconverged for rung in rungs),
    )
