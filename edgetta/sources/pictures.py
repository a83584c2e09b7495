"""Frames as one array: from what sources deliver to what networks take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.sources.source import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def images_of(frames: Sequence[Frame], channels: int = 3) -> NDArray[Any]:
    """Frames as one array: uint8 (N, H, W, 3), or float32 (N, C, H, W) in [0, 1] where one holds floats or C is 1.

    Grey is the luma of ITU-R 601, as image libraries compute it.
    """
    if all(frame.image.dtype == np.uint8 for frame in frames) and channels == 3:
        return np.stack([frame.image for frame in frames])
    pictures = [frame.image / np.float32(255) if frame.image.dtype == np.uint8 else frame.image for frame in frames]
    images = np.stack(pictures).astype(np.float32, copy=False).transpose(0, 3, 1, 2)
    if channels == 1:
        images = np.einsum("nchw,c->nhw", images, _LUMA)[:, None]
    return np.ascontiguousarray(images)
