"""Frames as one tensor, for what is done in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgetta.sources import pictures
from edgetta.sources.source import Frame


def images_of(frames: Sequence[Frame], channels: int = 3) -> Tensor:
    """`pictures.images_of` as a tensor."""
    return torch.from_numpy(pictures.images_of(frames, channels))
