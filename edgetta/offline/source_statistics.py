"""Source statistics of the values that meta-networks see: where their running statistics and their identity begin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork


@torch.no_grad()
def set_source_statistics(
    network: AdaptiveNetwork, batches: Iterable[Tensor] | None, input_shape: tuple[int, int, int]
) -> None:
    """Measure per-channel mean and variance of x_k and of the branch convolution, and hand them to the meta-networks.

    batches   source images (N, C, H, W) in [0, 1], passed through the frozen network with its source statistics.
              None: synthetic images with a natural spectrum, with batch statistics, which bring the activations near
              those of training whatever the images; an approximation for when no source data is at hand.
    """
    momentum = 0.0 if batches is not None else 1.0
    states = [dict(segment.state) for segment in (network.stem, *network.parts)]
    sums: list[list[Tensor]] = [[] for _ in network.metas]
    counts = [0] * len(network.metas)
    for images in batches if batches is not None else synthetic_images(input_shape):
        x, _ = network.stem.forward(images, keep=False, momentum=momentum)
        for k, (part, meta) in enumerate(zip(network.parts, network.metas, strict=True)):
            frozen, _ = part.forward(x, keep=False, momentum=momentum)
            moments = [*_sums(meta.flat(frozen)), *_sums(meta.convolve(x))]  # type: ignore[operator]
            sums[k] = moments if not sums[k] else [a + b for a, b in zip(sums[k], moments, strict=True)]
            counts[k] += frozen.numel() // len(moments[0])
            x = frozen
        for segment, state in zip((network.stem, *network.parts), states, strict=True):
            segment.state.update(state)
    for meta, (total, square, branch_total, branch_square), count in zip(network.metas, sums, counts, strict=True):
        mean, branch_mean = total / count, branch_total / count
        variance = (square / count - mean * mean).clamp_min(0)
        branch_variance = (branch_square / count - branch_mean * branch_mean).clamp_min(0)
        meta.set_source_statistics(*(t.float() for t in (mean, variance, branch_mean, branch_variance)))  # type: ignore[operator]


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel sums (C,) of x and x^2 in float64."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    x = x.double()
    return x.sum(axes), (x * x).sum(axes)


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
