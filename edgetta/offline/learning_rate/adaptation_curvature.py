"""What bounds a step of adaptation at each batch size, measured on source images under corruptions.

Two bounds. The largest |eigenvalue| of the Hessian of the adaptation objective: entropy is indefinite, so both ends of
the spectrum bend. And how fast predictions change along the gradient, g^T F g with F the Fisher matrix of the
predictions: entropy has no minimum to be stable around, and what collapses is the predictions (ours).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
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
from edgetta.segmented.adapter import AdaptConfig
from edgetta.segmented.objective import filtered_entropy
from edgetta.segmented.step_rate import divergence
from edgetta.segmented.stream_statistics import StreamStatistics

PROBE = 1e-3
"""Nats per image by which a probing step changes the predictions: large beside rounding, small beside 1."""
SETTLED = 4
"""Time constants after which running statistics are taken to be those of the stream."""


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
    network: AdaptiveNetwork,
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
    """Measure on the network as it is; running statistics settle on each domain first, and are put back.

    Args:
        network: on the torch engine, in the state that ships.
        domains: name -> images (N, C, H, W), uint8 or floats in [0, 1], under one corruption.
        config: gives regulariser and entropy filter.
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
    limit = free_bytes(network.device) // 2 if memory_limit is None else memory_limit
    surface = adaptation_surface(network, regulariser=config.regulariser, margin=config.entropy_margin)
    found: dict[int, list[BatchExtremes]] = {size: [] for size in sizes}
    speeds: dict[int, list[float]] = {size: [] for size in sizes}
    unconfident, done, total = 0, 0, len(sizes) * len(domains)
    for number, (name, images) in enumerate(domains.items()):
        samples = as_floats(images)
        for size in sizes:
            own, probed = (_share(count, number, len(domains)) for count in (batches, probes))
            with settled(network, samples, size, config):
                if own:
                    operator = HessianOperator(
                        surface, samples, batch_size=size, memory_limit=limit, distributed=False
                    )
                    _ = operator.micro_batch  # a limit that is too small is found before anything long
                    rungs = measure_ladder(
                        operator, [size], batches=own, iterations=iterations, tolerance=tolerance, seed=seed + number
                    ).rungs
                    found[size] += rungs
                for indices in draw_batches(len(samples), size, probed, seed + number):
                    speed = gradient_speed(network, samples[indices], config)
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


@torch.no_grad()
def gradient_speed(network: AdaptiveNetwork, images: Tensor, config: AdaptConfig) -> float | None:
    """g^T F g of a batch (N, C, H, W), g the gradient of its own objective and F the Fisher matrix of its predictions.

    From forwards alone: a step of length e along g changes the predictions by e^2/2 g^T F g nats, to leading order; e
    is chosen so that this is about `PROBE`. The statistics of frozen BatchNorms follow the step, as they do on the
    device, and take part of the change back: a product with F that holds them constant would be larger. Nothing is
    left moved. None where no image passes the entropy filter.

    Raises:
        NotFiniteError: the gradient moves no prediction, or something is not finite.
    """
    before, tape = network.forward(images, track=False)
    objective = filtered_entropy(before, config.entropy_margin)
    if objective.gradient is None:
        return None
    network.backward(tape, objective.gradient, config.regulariser)
    parameters = [p for p in network.parameters() if p.grad is not None]
    start = [p.clone() for p in parameters]
    gradients = [p.grad.clone() for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad = None
    length = PROBE**0.5
    try:
        for _ in range(20):
            for parameter, value, gradient in zip(parameters, start, gradients, strict=True):
                parameter.copy_(value - length * gradient)
            moved = divergence(before, network.forward(images, keep=False, track=False)[0])
            if PROBE / 4 <= moved <= PROBE * 4:
                return 2 * moved / length**2
            length *= min(max((PROBE / moved) ** 0.5, 1e-2), 1e2) if moved > 0 else 10.0
            if not np.isfinite(length):
                break
    finally:
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    raise NotFiniteError("no step along the gradient changes the predictions by a small amount; check the network")


@contextmanager
def settled(network: AdaptiveNetwork, images: Tensor, batch: int, config: AdaptConfig) -> Iterator[None]:
    """Running statistics as after a while on these images; put back on the way out.

    Where the device averages over its stream they also stay as they are meanwhile, for a batch moves them little.
    """
    before, policy = network.statistics_snapshot(), network.batch_norm
    streaming = policy == "auto" and config.statistics == "stream"
    reach = config.statistics_images if streaming else SETTLED * network.ema_images
    stream = StreamStatistics(config.statistics_images, math.inf)
    try:
        if streaming or (policy != "source" and network.statistics(batch)[0] != "batch"):
            for k in range(0, min(len(images), reach) - batch + 1, batch):
                taken = images[k : k + batch]
                network.forward(taken, keep=False, share=stream.share(taken) if streaming else None)
        if streaming:
            network.batch_norm = "source"
        yield
    finally:
        network.batch_norm = policy
        network.restore_statistics(before)


def as_floats(images: Tensor) -> Tensor:
    """Images in [0, 1] as float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


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
