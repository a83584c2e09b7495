"""Source statistics of the values that meta-networks see: where their statistics and their identity begin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.meta_network import EPSILON
from edgetta.adaptation.normaliser import fixed
from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet, Statistics
from edgetta.offline.network import Network

META = "metas."
"""What the names of the meta-networks' parameters and layers begin with."""


def with_source_statistics(network: Network, batches: Iterable[Tensor] | None) -> Network:
    """The network with statistics of the values that its meta-networks normalise: x_k, and the branch's convolution.

    With `identity` initialisation, which a scale tells, the norm's weight and bias become the source deviation and
    mean, so that the block maps x_k back to its source statistics: feature alignment.

    batches   source images (N, C, H, W) in [0, 1], passed through the frozen network with its statistics of training.
              None: synthetic images with a natural spectrum, with each batch's own statistics, which bring the
              activations near those of training whatever the images; an approximation for when no source data is at
              hand.
    """
    programs = network.programs
    silent, mixing = _without_meta_networks(programs, own=batches is None)
    found: Moments | None = None
    count = 0
    for images in synthetic_images(programs.input_shape) if batches is None else batches:
        _, own = network.engine.measure(images.numpy(), silent, mixing)
        found, count = joined(found, count, own, len(images)), count + len(images)
    if found is None:
        raise ValueError("no source images were given")
    mean, variance, shipped = programs.source.mean.copy(), programs.source.variance.copy(), programs.shipped.copy()
    for layer in programs.statistics.shapes:
        if not layer.startswith(META):
            continue
        at, prefix = programs.statistics.slice(layer), layer.removesuffix(".norm")
        mean[at], variance[at] = found.mean[at], found.variance[at]
        if prefix != layer and f"{prefix}.scale" in programs.parameters.shapes:
            shipped[programs.parameters.slice(f"{layer}_weight")] = np.sqrt(variance[at] + EPSILON)
            shipped[programs.parameters.slice(f"{layer}_bias")] = mean[at]
    return network.shipping(shipped, Statistics(mean, variance))


def joined(before: Moments | None, count: int, own: Moments, images: int) -> Moments:
    """Moments of `count` images with those of further ones: the mixture's own, in float64, without cancellation."""
    mean, variance = own.mean.astype(np.float64), own.variance.astype(np.float64)
    if before is None:
        return Moments(mean, variance)
    share = images / (count + images)
    step = mean - before.mean
    return Moments(
        before.mean + share * step,
        before.variance + share * (variance - before.variance) + share * (1 - share) * step * step,
    )


def _without_meta_networks(programs: ProgramSet, own: bool) -> tuple[Array, Mixing]:
    """Parameters and statistics with which x~_k = x_k: branches are silent, norms leave what comes as it is.

    own   the frozen layers normalise with each batch's own moments, not with those of training
    """
    parameters = programs.shipped.copy()
    mean, variance = programs.source.mean.copy(), programs.source.variance.copy()
    for name in programs.parameters.shapes:
        if name.startswith(META) and name.endswith((".branch_weight", ".branch_bias")):
            parameters[programs.parameters.slice(name)] = 0.0
    ours = np.zeros(programs.statistics.size, bool)
    for layer in programs.statistics.shapes:
        if layer.startswith(META):
            at = programs.statistics.slice(layer)
            ours[at], mean[at], variance[at] = True, 0.0, 1.0
        if layer.startswith(META) and layer.endswith(".norm"):
            parameters[programs.parameters.slice(f"{layer}_weight")] = math.sqrt(1 + EPSILON)
            parameters[programs.parameters.slice(f"{layer}_bias")] = 0.0
    kept = fixed(Statistics(mean, variance))
    if not own:
        return parameters, kept
    free = Mixing.plain(kept.before, 1.0)
    gain, offset, factor, power = (
        np.where(ours, getattr(kept, name), getattr(free, name)) for name in ("gain", "offset", "factor", "power")
    )
    return parameters, Mixing(kept.before, 1.0, gain, offset, factor, power, kept.floor)


def synthetic_images(
    input_shape: tuple[int, int, int], count: int = 128, batch: int = 64, seed: int = 0
) -> Iterator[Tensor]:
    """Batches (N, C, H, W) in [0, 1] of noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    channels, height, width = input_shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.fft.fftfreq(height)[:, None] * height
    columns = torch.fft.rfftfreq(width)[None] * width
    frequency = torch.sqrt(rows * rows + columns * columns).clamp_min(1.0)
    for start in range(0, count, batch):
        size = min(batch, count - start)
        noise = torch.randn(size, channels, height, width, generator=generator)
        grey = torch.randn(size, 1, height, width, generator=generator)  # photographs' channels move together
        spectrum = torch.fft.rfft2(noise * 0.4 + grey) / frequency
        images = torch.fft.irfft2(spectrum, s=(height, width))
        spread = images.flatten(1).std(1).clamp_min(1e-6)[:, None, None, None]
        yield (0.45 + 0.25 * images / spread).clamp_(0, 1)


def batches_of(images: Tensor, size: int) -> Iterator[Tensor]:
    """Consecutive batches of (N, C, H, W) images."""
    for i in range(math.ceil(images.shape[0] / size)):
        yield images[i * size : (i + 1) * size]
