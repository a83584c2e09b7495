"""Statistics of the stream blended with those of training: `source * s + stream * (1 - s)`, with s the source's share.

The statistics of the stream alone correct a strong shift, and cost accuracy where the shift is weak. Which share of
the source is better there, the predictions tell: they are clearly more certain. Blending statistics at test time is
known from Schneider et al. (NeurIPS 2020), with a share that is fixed or follows the number of images; that entropy
chooses it, for each stretch of the stream, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SHARES = (0.0, 0.25, 0.5, 0.75)
"""Shares of the source that are compared. Below 1, so that what the stream is like stays visible."""

States = Sequence[Mapping[str, Tensor]]
"""Running statistics by name, segment by segment and meta-network by meta-network."""


def stream_alone(blended: States, source: States, share: float) -> list[dict[str, Tensor]]:
    """The stream's statistics in a blend with that share of the source, at least 0 and below 1."""
    if share == 0:
        return [dict(state) for state in blended]
    return [
        {name: _positive(name, torch.lerp(was[name], tensor, 1 / (1 - share))) for name, tensor in state.items()}
        for state, was in zip(blended, source, strict=True)
    ]


def before_images(
    stream: States, source: States, share: float, images: float
) -> tuple[list[dict[str, Tensor]], float]:
    """Where running statistics must stand, and their momentum, so that images make a blend of them.

    Moved towards the images' own statistics by the momentum m, they are then
    `source * share + (1 - share) * (stream * (1 - images) + own * images)`.

    share    of the source, at least 0 and below 1
    images   share of the images in the stream's average, above 0 and at most 1
    """
    momentum = (1 - share) * images
    if share == 0:
        return [dict(state) for state in stream], momentum
    of_source = share / (1 - momentum)
    states = [
        {name: torch.lerp(tensor, was[name], of_source) for name, tensor in state.items()}
        for state, was in zip(stream, source, strict=True)
    ]
    return states, momentum


def _positive(name: str, tensor: Tensor) -> Tensor:
    return tensor.clamp_min(0) if "var" in name.rpartition(".")[2] else tensor
