"""Frames as one tensor: from what sources deliver to what networks take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgetta.sources.source import Frame

_LUMA = (0.299, 0.587, 0.114)


def images_of(frames: Sequence[Frame], channels: int = 3) -> Tensor:
    """Frames as one tensor: uint8 (N, H, W, 3), or float32 (N, C, H, W) in [0, 1] where one holds floats or C is 1.

    Grey is the luma of ITU-R 601, as image libraries compute it.
    """
    if all(frame.image.dtype == np.uint8 for frame in frames) and channels == 3:
        return torch.from_numpy(np.stack([frame.image for frame in frames]))
    pictures = [frame.image / np.float32(255) if frame.image.dtype == np.uint8 else frame.image for frame in frames]
    images = torch.from_numpy(np.stack(pictures).astype(np.float32, copy=False)).permute(0, 3, 1, 2)
    if channels == 1:
        images = (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return images.contiguous()
