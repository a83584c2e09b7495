"""Residuals in few bits: eight mask elements to a byte, a bounded derivative in one byte.

On the CPU numpy packs at memory speed; on CUDA the same layout is made with torch operators. The layout is numpy's:
the first element is the most significant bit.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_WEIGHTS = (128, 64, 32, 16, 8, 4, 2, 1)


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a boolean tensor of any shape, as (ceil(elements / 8),) uint8."""
    flat = mask.reshape(-1)
    return torch.from_numpy(np.packbits(flat.numpy())) if flat.device.type == "cpu" else pack_with_torch(flat)


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of `shape` that `pack_mask` packed."""
    count = math.prod(shape)
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(np.bool_)).view(shape)
    return unpack_with_torch(bits, count).view(shape)


def pack_with_torch(flat: Tensor) -> Tensor:
    """`pack_mask` of a flat mask on any device."""
    padded = torch.nn.functional.pad(flat.view(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    packed = padded[:, 0] << 7
    for bit in range(1, 8):
        packed |= padded[:, bit] << (7 - bit)
    return packed


def unpack_with_torch(bits: Tensor, count: int) -> Tensor:
    """The first `count` elements of what `pack_with_torch` packed, flat."""
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] & weights).ne(0).view(-1)[:count]


def pack_code(values: Tensor, low: float, high: float) -> Tensor:
    """Numbers in [low, high] rounded to 256 levels, as uint8 of the same shape."""
    scaled = (values - low) * (255.0 / (high - low))
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def unpack_code(codes: Tensor, low: float, high: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that `pack_code` rounded, each within (high - low) / 510 of the original."""
    return codes.to(dtype).mul_((high - low) / 255.0).add_(low)
