"""Pixels as networks take them."""

from __future__ import annotations

import torch
from torch import Tensor


def as_floats(images: Tensor) -> Tensor:
    """Float32 in [0, 1]: bytes divided by 255, floats as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
